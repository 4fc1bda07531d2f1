"""Captions of whole batches, read by a text encoder: as token ids, or as states of a frozen one.

    trained inside the network      `text_ids` and `text_mask` in every batch; the network makes states of them
    frozen                          `text` and `text_mask`: states kept beside the latents, or made batch by batch

To keep states costs `length` x `width` x 2 bytes a sample (4 MB for umT5 XXL at 512 tokens, more than the latents of
most images); to make them costs `flops(length)` a sample and step. Keep them while they fit the disk; make them where
captions are many or long.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from nova_jax import config, weights
from nova_jax.models.text.encoder import TextEncoder

Data = TypeVar("Data")
STORED_AS = np.float16  # states; they leave the encoder's last norm, far from the ends of its range


def bind(data: Data, encoder: TextEncoder) -> Data:
    """The data with the text encoder that is trained inside the network.

    Raises:
        ValueError: the data names another one.
    """
    named = data.text_encoder  # pyright: ignore[reportAttributeAccessIssue]
    if named not in (None, encoder):
        names = config.fields_of(encoder) if type(named) is type(encoder) else []
        other = [name for name in names if getattr(named, name) != getattr(encoder, name)]
        raise ValueError(
            f"the network trains {type(encoder).__name__} and the data names {type(named).__name__}"
            f"{' with another ' + ', '.join(other) if other else ''}: leave data.text_encoder out, or train a network "
            "without an encoder of its own"
        )
    return dataclasses.replace(data, text_encoder=encoder)  # pyright: ignore[reportArgumentType]


def check(encoder: TextEncoder | None) -> TextEncoder:
    """The encoder of captioned data.

    Raises:
        ValueError: there is none.
    """
    if encoder is None:
        raise ValueError(
            "nothing reads the captions: train a network with a text encoder of its own (TextToLatent), or set "
            "data.text_encoder to a frozen one, such as T5TextEncoder(path=FOLDER)"
        )
    return encoder


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """Batch step of a loader: replaces `caption` by `text_ids` and `text_mask`; captions that do not fit are cut."""

    encoder: TextEncoder

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tokenises a batch.

        Raises:
            ValueError: there are no captions.
        """
        if "caption" not in batch:
            raise ValueError(
                f"the batch has no captions to tokenise, only {', '.join(batch)}: use a source with captions"
            )
        captions = [str(caption) for caption in batch["caption"]]
        ids, mask = self.encoder.tokenize(captions, truncate=True)
        rest = {name: array for name, array in batch.items() if name != "caption"}
        return rest | {"text_ids": ids, "text_mask": mask}


@dataclasses.dataclass(frozen=True)
class Encode:
    """Batch step of a loader: replaces `caption` by `text`, the states of a frozen encoder, and `text_mask`."""

    encoder: TextEncoder

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Encodes a batch; see `Tokenize`."""
        rows = Tokenize(self.encoder)(batch)
        states, mask = weights.encode_text(self.encoder, rows.pop("text_ids"), rows.pop("text_mask"))
        return rows | {"text": np.asarray(states.astype(jnp.float32)), "text_mask": np.asarray(mask)}


def batch_step(encoder: TextEncoder, *, is_cached: bool) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a loader does with the captions of a batch."""
    if not encoder.is_frozen:
        return Tokenize(encoder)
    return _read_states if is_cached else Encode(encoder)


def cached_encoder(data: Any) -> TextEncoder | None:
    """The frozen encoder whose states are kept beside the latents of `data`; None where none are."""
    encoder = data.text_encoder
    return encoder if encoder is not None and encoder.is_frozen and data.caches_text else None


def states_of(encoder: TextEncoder, captions: Any) -> dict[str, np.ndarray]:
    """What is kept of captions beside the latents: `text` in half precision, and `text_mask`."""
    rows = Encode(encoder)({"caption": captions})
    return {"text": rows["text"].astype(STORED_AS), "text_mask": rows["text_mask"]}


def _read_states(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rest = {name: array for name, array in batch.items() if name != "caption"}
    return rest | {"text": batch["text"].astype(np.float32)}
