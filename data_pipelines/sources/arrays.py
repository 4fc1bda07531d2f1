"""Samples that already lie in memory."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from data_pipelines.sources import base


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(base.Source):
    """Latents (or pixels: set `name`), first axis samples, with one caption each.

    Attributes:
        latents: (n, f, h, w, c).
        captions: n texts, or None for unconditional data.
        name: what the array is called in a sample.
        extra: further arrays by name, first axis samples.
    """

    latents: np.ndarray
    captions: Sequence[str] | None = None
    name: str = "latents"
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.latents):
            raise base.DatasetError("there are no samples: the first axis of the array has length 0")
        if self.captions is not None and len(self.captions) != len(self.latents):
            raise base.DatasetError(
                f"{len(self.latents)} samples but {len(self.captions)} captions: give one each, or captions=None"
            )

    def __len__(self) -> int:
        return len(self.latents)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        caption = {} if self.captions is None else {"caption": self.captions[index]}
        return {self.name: self.latents[index]} | caption | {name: array[index] for name, array in self.extra.items()}

    def fingerprint(self) -> str:
        """Hash of all content: it is at hand."""
        digest = hashlib.sha256(repr((self.name, self.latents.dtype.name, self.latents.shape)).encode())
        digest.update(np.ascontiguousarray(self.latents).view(np.uint8).data)
        digest.update(repr(None if self.captions is None else list(self.captions)).encode())
        for name, array in self.extra.items():
            digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()
