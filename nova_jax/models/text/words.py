"""Our own text encoder: one token a word, any word, trained from scratch with the denoiser.

A caption is split into words, symbols and ideographs (`split`), and the embedding of a word is made of its spelling, so
that there is no vocabulary to keep and a word is the same wherever it stands:

    e_i = sum_k Table_k[hash_k(word_i)]  +  gelu([Embed(byte_1), .., Embed(byte_w)] In) Out
    y_i = e_i  +  gelu([e_i-2, .., e_i+2] In') Out'          a convolution over `window` = 5 tokens
    x   = RMSNorm(blocks(y))                   T5 blocks (models/text/t5.py): bidirectional, relative position bias

The hashed rows give every word a direction of its own from the first step on; two tables make it unlikely that two
words share both rows. The bytes, each at its place, tell apart those that do, and let similar spellings ("circle",
"circles") share what they have in common. The convolution binds a colour to the noun beside it. Words of more than
`word_bytes` bytes continue in further tokens.

Captions are compared after Unicode normalisation (NFC) and in lower case.

Hash embeddings: Svenstrup et al. 2017, arXiv:1709.03933 (eq. 2, with equal weights); a word as the sum of its parts and
of itself: Bojanowski et al. 2017, arXiv:1607.04606 (section 3.2). Random word embeddings with positions are enough for
a cross-attention transformer to learn relations between objects: arXiv:2601.06338.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from nova_jax.layers import linear
from nova_jax.models.text import encoder, t5
from nova_jax.types import Mask, as_mask

NULL = 0  # padding, and the whole of the null caption
START = 1  # the first token of every caption, so that the empty one is text too
CONTINUED = 2  # the first id of a token that goes on with the word before it
FIRST_BYTE = 3
VOCAB_SIZE = FIRST_BYTE + 256
NUM_TABLES = 2

Positions = Literal["relative", "absolute", "none"]  # how the blocks tell the order of words

HEX_COLOR = re.compile(r"#[0-9a-f]{3,8}(?![0-9a-z])")
HEX_LENGTH = len("#ff8800ff")
IDEOGRAPHS = re.compile(  # scripts that write no spaces: every character is a token
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff]"
)
JOINER, KEYCAP = "\u200d", "\u20e3"
INSIDE = re.compile("[\u200c\u200d\U000e0020-\U000e007f]")  # joiners, tags of flags: part of what they follow
SKIN_TONES = ("\U0001f3fb", "\U0001f3ff")
FLAG_LETTERS = ("\U0001f1e6", "\U0001f1ff")


@functools.lru_cache(maxsize=2**14)
def split(caption: str) -> tuple[str, ...]:
    """The words of a caption, in lower case.

    A word is a run of letters, digits and the marks on them ("größe", "50"); a hex colour ("#ff8800") is one; so is
    every character of a script without spaces (Chinese, Japanese, Thai), every emoji with what modifies it, and every
    other symbol ("-", ","). Spaces and what cannot be seen only separate, but for joiners inside words and emoji.
    """
    text = unicodedata.normalize("NFC", caption).lower()
    words, start = [], 0
    while start < len(text):
        end = _end_of_word(text, start)
        if not _is_space(text[start]):
            words.append(text[start:end])
        start = end
    return tuple(words)


def _end_of_word(text: str, start: int) -> int:
    """Where the word, symbol or space that begins at `start` ends."""
    if match := HEX_COLOR.match(text, start):
        return match.end()
    end = start + 1
    if _is_letter(text[start]):
        is_alone = IDEOGRAPHS.match(text, start) is not None
        while (
            end < len(text)
            and text[end - 1] != KEYCAP
            and (_is_mark(text[end]) or (not is_alone and _is_letter(text[end])))
        ):
            if not is_alone and IDEOGRAPHS.match(text, end):
                break
            end += 1
        return end
    return end if _is_space(text[start]) else _end_of_emoji(text, start, end)


def _end_of_emoji(text: str, start: int, end: int) -> int:
    """Takes in what modifies the symbol before: variation, skin tone, a joined symbol, the other half of a flag."""
    is_flag = FLAG_LETTERS[0] <= text[start] <= FLAG_LETTERS[1]
    if is_flag and end < len(text) and FLAG_LETTERS[0] <= text[end] <= FLAG_LETTERS[1]:
        end += 1
    while end < len(text):
        if text[end] == JOINER and end + 1 < len(text):
            end += 2
        elif _is_mark(text[end]) or SKIN_TONES[0] <= text[end] <= SKIN_TONES[1]:
            end += 1
        else:
            break
    return end


def _is_letter(char: str) -> bool:
    return char.isalnum() or unicodedata.category(char) == "Mc"


def _is_mark(char: str) -> bool:
    return unicodedata.category(char)[0] == "M" or INSIDE.match(char) is not None


def _is_space(char: str) -> bool:
    return char.isspace() or unicodedata.category(char) in ("Cc", "Cf", "Zs", "Zl", "Zp")


@functools.lru_cache(maxsize=2**16)
def spell(word: str, word_bytes: int) -> Int[np.ndarray, "p w"]:
    """A word as tokens of `word_bytes` ids: its UTF-8 bytes, a token that goes on marked as such by its first id."""
    data = np.frombuffer(word.encode(), np.uint8).astype(np.int32) + FIRST_BYTE
    pieces = [data[:word_bytes]]
    for start in range(word_bytes, len(data), word_bytes - 1):
        pieces.append(np.append(CONTINUED, data[start : start + word_bytes - 1]))
    return np.stack([np.pad(piece, (0, word_bytes - len(piece))) for piece in pieces]).astype(np.int32)


class WordTextEncoder(nn.Module):
    """Words to text states, one each."""

    width: int = 256
    depth: int = 1
    num_heads: int = 4
    length: int = 32  # tokens of a caption, the start token included
    word_bytes: int = 12  # of a token
    byte_width: int = 32
    num_rows: int = 1024  # of each hash table
    window: int = 5  # tokens, itself in their middle, from which a token is made; 1: itself alone
    positions: Positions = "relative"
    has_frozen_words: bool = False  # embeddings of words stay the random ones they began with
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @property
    def is_frozen(self) -> bool:
        """False: it is trained inside the network."""
        return False

    @nn.nowrap
    def tokenize(self, captions: Sequence[str], *, truncate: bool = False) -> encoder.Tokens:
        """Ids (n, length, word_bytes) and mask (n, length): a start token, then the words; see `TextEncoder`.

        Raises:
            CaptionTooLong: a caption has more than `length - 1` tokens and `truncate` is False.
        """
        ids = np.zeros((len(captions), self.length, self.word_bytes), np.int32)
        mask = np.zeros((len(captions), self.length), bool)
        ids[:, 0, 0] = START
        mask[:, 0] = True
        for row, marked, caption in zip(ids, mask, captions, strict=True):
            tokens = self._spell(caption)
            if len(tokens) >= self.length and not truncate:
                raise encoder.too_long(caption, len(tokens), self.length - 1, "words (long ones count twice)")
            tokens = self._spell(self.cut(caption)) if len(tokens) >= self.length else tokens
            row[1 : 1 + len(tokens)] = tokens
            marked[1 : 1 + len(tokens)] = True
        return encoder.Tokens(ids, mask)

    @nn.nowrap
    def cut(self, caption: str) -> str:
        """The longest beginning of a caption that fits."""
        if self._fits(caption):
            return caption
        low, high = 0, len(caption)  # `low` characters fit, `high` do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._fits(caption[:middle]) else (low, middle)
        # A hex colour is one word when it is whole, and several symbols and words on the way there.
        whole = [end for end in range(high, min(high + HEX_LENGTH, len(caption)) + 1) if self._fits(caption[:end])]
        return caption[: max(whole, default=low)]

    @nn.nowrap
    def null(self, batch_size: int) -> encoder.Tokens:
        """The null caption, one token."""
        return encoder.make_null(batch_size, (1, self.word_bytes))

    @nn.nowrap
    def num_states(self, length: int) -> int:
        """One state a token."""
        return length

    @nn.nowrap
    def _fits(self, caption: str) -> bool:
        return len(self._spell(caption)) < self.length

    @nn.nowrap
    def _spell(self, caption: str) -> Int[np.ndarray, "p w"]:
        nothing = np.zeros((0, self.word_bytes), np.int32)
        return np.concatenate([nothing, *(spell(word, self.word_bytes) for word in split(caption))])

    @nn.compact
    def __call__(
        self, ids: Int[Array | np.ndarray, "b l w"], mask: Mask
    ) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"]]:
        """States and their mask. Masked states are zero and never influence the others.

        Raises:
            ValueError: tokens of another number of ids than `word_bytes`.
        """
        ids, mask = jnp.asarray(ids), as_mask(mask)
        if ids.shape[-1] != self.word_bytes:
            raise ValueError(f"tokens have {ids.shape[-1]} ids; this encoder reads word_bytes={self.word_bytes}")
        x = self._embed_hashes(ids) + self._embed_bytes(ids)
        if self.has_frozen_words:
            x = jax.lax.stop_gradient(x)
        if self.window > 1:
            x = x + Neighbours(self.window, self.dtype, name="window_embed")(jnp.where(mask[..., None], x, 0))
        if self.positions == "absolute":
            x = x + sinusoids(x.shape[1], self.width)[None]
        if self.depth:
            bias = t5.RelativeBias(self.num_heads, name="relative_bias")(x.shape[1])
            bias = bias if self.positions == "relative" else jnp.zeros_like(bias)
            blocks = t5.make_blocks(self.width, self.depth, self.num_heads, self.mlp_ratio, self.dtype)
            x, _ = blocks(x, t5.Context(bias, mask))
        x = nn.RMSNorm(dtype=jnp.float32, name="final_norm")(x)
        return jnp.where(mask[..., None], x, 0), mask

    def _embed_hashes(self, ids: Int[Array, "b l w"]) -> Float[Array, "b l d"]:
        """The sum of the word's row in each table, with elements of variance 1."""
        init = nn.initializers.normal(NUM_TABLES**-0.5)
        found = jnp.zeros((*ids.shape[:2], self.width))
        for k in range(NUM_TABLES):
            table = nn.Embed(self.num_rows, self.width, embedding_init=init, name=f"word_{k}")
            found = found + table((hash_words(ids, k) % self.num_rows).astype(jnp.int32))
        return found

    def _embed_bytes(self, ids: Int[Array, "b l w"]) -> Float[Array, "b l d"]:
        """A two-layer network of the bytes at their places."""
        init = nn.initializers.normal(1.0)
        spelled = nn.Embed(VOCAB_SIZE, self.byte_width, embedding_init=init, name="embed")(ids)
        spelled = jnp.where((ids != NULL)[..., None], spelled, 0).reshape(*ids.shape[:2], -1)
        return Spelling(self.width, self.dtype, name="spelling_embed")(spelled)

    @nn.nowrap
    def flops(self, length: int) -> int:
        """Forward FLOPs of one caption of `length` tokens; see `TextEncoder`."""
        spelling = 2 * length * 2 * self.width * (self.word_bytes * self.byte_width + self.width)
        spelling += 2 * length * self.width**2 * (self.window + 1) if self.window > 1 else 0
        return spelling + self.depth * t5.block_flops(
            length, self.width, self.width, round(self.mlp_ratio * self.width)
        )


class Spelling(nn.Module):
    """Linear, GELU, linear: the bytes of a word, joined, to the width of a state."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l s"]) -> Float[Array, "b l d"]:
        """Acts on every token alone; returns float32."""
        init = nn.initializers.lecun_normal()
        hidden = jax.nn.gelu(linear.Dense(2 * self.width, kernel_init=init, dtype=self.dtype, name="in")(x))
        return linear.Dense(self.width, kernel_init=init, dtype=self.dtype, name="out")(hidden).astype(jnp.float32)


class Neighbours(nn.Module):
    """A two-layer convolution along the words: what each token is told of those around it, by their places."""

    window: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Reads `window` tokens, zeros beyond the ends; returns float32."""
        length, width = x.shape[1:]
        before = (self.window - 1) // 2
        padded = jnp.pad(x, ((0, 0), (before, self.window - 1 - before), (0, 0)))
        windows = jnp.concatenate([padded[:, i : i + length] for i in range(self.window)], axis=-1)
        init = nn.initializers.lecun_normal()
        hidden = jax.nn.gelu(linear.Dense(width, kernel_init=init, dtype=self.dtype, name="in")(windows))
        return linear.Dense(width, kernel_init=init, dtype=self.dtype, name="out")(hidden).astype(jnp.float32)


def hash_words(ids: Int[Array, "b l w"], table: int) -> UInt32[Array, "b l"]:
    """A 32-bit hash of each token's ids, another one for each table: FNV-1a with its high bits mixed into the low."""
    value = jnp.full(ids.shape[:-1], np.uint32((2166136261 + table * 2654435761) % 2**32), jnp.uint32)
    for place in range(ids.shape[-1]):
        value = (value ^ ids[..., place].astype(jnp.uint32)) * np.uint32(16777619)
        value = value ^ (value >> 15)
    value = value * np.uint32(2246822519)
    return value ^ (value >> 13)


def sinusoids(length: int, width: int) -> Float[np.ndarray, "l d"]:
    """Positions as sines and cosines of wavelengths 2 pi to 20,000 pi (Vaswani et al. 2017, arXiv:1706.03762)."""
    angles = np.arange(length)[:, None] / 10_000 ** (np.arange(width // 2)[None] / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32) * 2**0.5
