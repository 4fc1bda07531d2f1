"""Single images out of clips."""

import dataclasses
import hashlib
from typing import Any

from data_pipelines.sources import base


@dataclasses.dataclass(frozen=True)
class Frames(base.Source):
    """One frame of every clip: of clip i the frame at i stride mod f, so that all positions occur.

    Attributes:
        clips: samples with `pixels` (f, h, w, c); what else they hold is left out, as it speaks of the whole clip.
        stride: prime to the number of frames.
    """

    clips: Any
    stride: int = 7

    def __len__(self) -> int:
        return len(self.clips)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        pixels = self.clips[index]["pixels"]
        at = index * self.stride % len(pixels)
        return {"pixels": pixels[at : at + 1]}

    def fingerprint(self) -> str:
        """Hash of the clips and the stride."""
        return hashlib.sha256(repr((base.fingerprint(self.clips), self.stride)).encode()).hexdigest()
