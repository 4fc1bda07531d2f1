"""What a text encoder is: the one interface through which data, runs and sampling read captions.

    captions -> ids, mask          `tokenize`, in NumPy on the host, in any process; static shapes
    ids, mask -> states, mask      the module itself: {"params": ..} and jax arrays

Positions of `ids` are counted in the encoder's own unit (words, bytes, subwords), and `length` of them are read. Ids of
one position may be several numbers (the bytes of a word), so they are (b, l) or (b, l, w).

The null caption, by which classifier-free guidance says nothing, is the same for every encoder: ids, or states, all 0,
with the mask True at position 0 only. The empty caption is another thing: it is a text without words.

An encoder that is trained with the denoiser is a part of its network (`models.text_to_latent`) and has its parameters
there. A frozen one is no part of the network: whoever makes the batches encodes the captions and gives the denoiser
`Conditioning.text`; its parameters come from the folder that it names.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Int

Ids = Int[np.ndarray, "b l"] | Int[np.ndarray, "b l w"]
Mask = Bool[np.ndarray, "b l"]


class Tokens(NamedTuple):
    """Captions as ids, and which positions are real."""

    ids: Ids
    mask: Mask


class CaptionTooLong(ValueError):
    """A caption has more positions than an encoder reads."""


@runtime_checkable
class TextEncoder(Protocol):
    """A value that turns captions into states; see the module's docstring."""

    @property
    def length(self) -> int:
        """Positions of a caption, whatever marks its beginning or end included."""
        ...

    @property
    def width(self) -> int:
        """Of a state."""
        ...

    @property
    def is_frozen(self) -> bool:
        """Whether it is read from a folder and never trained, rather than trained inside the network."""
        ...

    def tokenize(self, captions: Sequence[str], *, truncate: bool = False) -> Tokens:
        """Ids and mask of `length` positions.

        Args:
            captions: any Unicode text.
            truncate: cut a caption that is too long where `cut` does, instead of raising.

        Raises:
            CaptionTooLong: a caption does not fit; the sentence says how many positions it has and how many fit.
        """
        ...

    def cut(self, caption: str) -> str:
        """The longest beginning of a caption that fits."""
        ...

    def null(self, batch_size: int) -> Tokens:
        """The null caption in as few positions as the encoder can read."""
        ...

    def num_states(self, length: int) -> int:
        """States that `length` positions become."""
        ...

    def flops(self, length: int) -> int:
        """Forward FLOPs of one caption of `length` positions: matrix products only, a multiply-add is two."""
        ...


def make_null(batch_size: int, shape: tuple[int, ...]) -> Tokens:
    """The null caption of `shape` (l) or (l, w): ids all 0, the mask True at position 0 only."""
    mask = np.zeros((batch_size, shape[0]), bool)
    mask[:, 0] = True
    return Tokens(np.zeros((batch_size, *shape), np.int32), mask)


def too_long(caption: str, count: int, fits: int, unit: str) -> CaptionTooLong:
    """The error of a caption of `count` units where `fits` can be read."""
    return CaptionTooLong(
        f"caption {caption[:60]!r} has {count} {unit} and {fits} fit: shorten it, or train with a larger length of the "
        "text encoder"
    )


def real_positions(ids: Any) -> Any:
    """The positions, of any text but the null caption, whose ids are not all 0: bool (b, l)."""
    return (ids != 0).reshape(*ids.shape[:2], -1).any(axis=-1)


def find(model: Any) -> TextEncoder | None:
    """The encoder that is trained inside a network; None where it has none."""
    return getattr(model, "text_encoder", None)
