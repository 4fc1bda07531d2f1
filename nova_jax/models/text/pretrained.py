"""T5 and umT5 from a folder on disk, frozen: the text encoder of Wan, SD3, FLUX and many others.

The folder is what transformers saves: config.json, safetensors, and tokenizer.json, which `tokenizers` reads.
`weights.encode_text` runs it; its parameters are read once for a process.

Padding is what the public models do with it. A caption ends with the tokenizer's end token and is padded to `length`:

    reads_padding False     padded positions are masked in the encoder, and marked in its mask            Wan, our runs
    reads_padding True      the encoder attends to padding, and every position counts as text            SD3, FLUX.1

A denoiser with `masks_text=False`, such as Wan's, sets what the mask leaves out to zero and attends to it.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from nova_jax import git_lfs
from nova_jax.models.text import encoder, t5

TOKENIZER_FILE = "tokenizer.json"
END = "</s>"
SIZES = ("vocab_size", "d_model", "num_layers", "num_heads", "d_kv", "d_ff")


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5TextEncoder:
    """A frozen T5 or umT5 encoder.

    Attributes:
        path: its folder.
        tokenizer_path: folder of tokenizer.json, where it lies elsewhere, as in a diffusers pipeline.
        length: tokens of a caption, the end token included; Wan reads 512.
        reads_padding: attend to padding, as SD3 and FLUX.1 do.
        dtype: of its parameters and products; the states come out in float32.
    """

    path: str
    tokenizer_path: str = ""
    length: int = 128
    reads_padding: bool = False
    dtype: Any = np.float32

    @property
    def is_frozen(self) -> bool:
        """True: it is read from its folder and never trained."""
        return True

    @property
    def width(self) -> int:
        """Of a state: `d_model` of config.json."""
        return self._config["d_model"]

    def tokenize(self, captions: Sequence[str], *, truncate: bool = False) -> encoder.Tokens:
        """Ids and mask (n, length): the tokens of each caption, the end token, then padding; see `TextEncoder`.

        Raises:
            CaptionTooLong: a caption has more than `length - 1` tokens and `truncate` is False.
            FileNotFoundError: the folder has no tokenizer.json.
            ValueError: the tokenizer does not belong to the weights.
        """
        tokenizer, end = self._tokenizer
        ids = np.zeros((len(captions), self.length), np.int32)  # padding is token 0
        mask = np.zeros(ids.shape, bool)
        for row, marked, caption in zip(ids, mask, captions, strict=True):
            tokens = tokenizer.encode(caption, add_special_tokens=False).ids
            if len(tokens) >= self.length and not truncate:
                raise encoder.too_long(caption, len(tokens), self.length - 1, "tokens")
            if len(tokens) >= self.length:
                tokens = tokenizer.encode(self.cut(caption), add_special_tokens=False).ids
            tokens = [*tokens, end]
            row[: len(tokens)] = tokens
            marked[: len(tokens)] = True
        return encoder.Tokens(ids, np.ones_like(mask) if self.reads_padding else mask)

    def cut(self, caption: str) -> str:
        """The longest beginning of a caption that fits."""
        tokenizer, _ = self._tokenizer
        found = tokenizer.encode(caption, add_special_tokens=False)
        if len(found.ids) < self.length:
            return caption
        caption = caption[: found.offsets[self.length - 2][1]] if self.length > 1 else ""
        while len(tokenizer.encode(caption, add_special_tokens=False).ids) >= self.length:
            caption = caption[:-1]  # half a word may take more tokens than it took as a part of the whole one
        return caption

    def null(self, batch_size: int) -> encoder.Tokens:
        """The null caption, one position; its state is zero, whatever the encoder would make of it."""
        return encoder.make_null(batch_size, (1,))

    def num_states(self, length: int) -> int:
        """One state a token."""
        return length

    def flops(self, length: int) -> int:
        """Forward FLOPs of one caption of `length` tokens; see `TextEncoder`."""
        c = self._config
        return c["num_layers"] * t5.block_flops(length, c["d_model"], c["num_heads"] * c["d_kv"], c["d_ff"])

    @property
    def tokenizer_file(self) -> pathlib.Path:
        """Where the tokenizer is read from."""
        return pathlib.Path(self.tokenizer_path or self.path) / TOKENIZER_FILE

    @property
    def _config(self) -> dict[str, Any]:
        return read_config(self.path)

    @property
    def _tokenizer(self) -> tuple[Any, int]:
        return read_tokenizer(str(self.tokenizer_file), self._config["vocab_size"])


@functools.lru_cache(maxsize=8)
def read_config(path: str) -> dict[str, Any]:
    """The config.json of a T5 folder.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON, or does not describe a T5 encoder.
    """
    file = pathlib.Path(path) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} is no folder of a T5 encoder: it has no config.json. Download one, for example with "
            "`huggingface-cli download google/flan-t5-base --local-dir FOLDER`, and give that folder"
        )
    _refuse_pointer(file)
    try:
        config = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    if missing := [key for key in SIZES if key not in config]:
        raise ValueError(f"{file} does not describe a T5 encoder: it lacks {', '.join(missing)}")
    return config


def _refuse_pointer(file: pathlib.Path) -> None:
    if git_lfs.is_pointer_file(file):
        raise ValueError(f"{file} is {git_lfs.POINTER}")


@functools.lru_cache(maxsize=8)
def read_tokenizer(file: str, vocab_size: int) -> tuple[Any, int]:
    """A tokenizer without padding and truncation, and its end token.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no tokenizer, has tokens that the weights have no embedding for, or no end token.
    """
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError("T5 text encoders need the `text` extra: pip install -e '.[text]'") from error
    if not pathlib.Path(file).is_file():
        folder = pathlib.Path(file).parent
        raise FileNotFoundError(
            f"{folder} has no {TOKENIZER_FILE}. Set tokenizer_path to the folder that has it (in a diffusers pipeline "
            "the folder `tokenizer`), or make it from the folder's spiece.model with transformers: "
            f"`T5TokenizerFast.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`"
        )
    _refuse_pointer(pathlib.Path(file))
    try:
        tokenizer = tokenizers.Tokenizer.from_str(pathlib.Path(file).read_text(encoding="utf-8-sig"))
    except Exception as error:  # the library raises no other kind
        raise ValueError(f"{file} cannot be read as a tokenizer: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if (size := tokenizer.get_vocab_size()) > vocab_size:
        raise ValueError(
            f"{file} has {size:,} tokens and the weights have embeddings for {vocab_size:,}: it is another model's"
        )
    if (end := tokenizer.token_to_id(END)) is None:
        raise ValueError(f"{file} has no end token {END}: it is no tokenizer of a T5")
    return tokenizer, end
