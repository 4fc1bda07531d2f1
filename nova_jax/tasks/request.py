"""What every request is: a frozen dataclass whose construction fails with all of its problems, or leaves it valid."""

import abc
import dataclasses
from collections.abc import Iterable
from typing import Any, NamedTuple

from nova_jax.tasks import checks
from nova_jax.tasks.image_inputs import RGBImage
from nova_jax.tasks.limits import CANVAS, REEL, SEED, Limits, VideoLimits
from nova_jax.tasks.problems import Problem, refuse


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Request(abc.ABC):
    """One thing asked for. Requests hold arrays, so they compare and hash by identity.

    Raises:
        InvalidRequest: with every problem of the request.
    """

    __no_type_check__ = True  # `problems` looks at types as well, to report all at once

    def __post_init__(self) -> None:
        refuse(self.problems())

    @abc.abstractmethod
    def problems(self) -> Iterable[Problem]:
        """Every rule that the fields break."""

    @property
    @abc.abstractmethod
    def size(self) -> tuple[int, int]:
        """(height, width) of the output in pixels."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageRequest(Request):
    """A request whose answer is images.

    Attributes:
        limits: The sizes that the model takes.
    """

    limits: Limits = CANVAS


class ShotRequest(NamedTuple):
    """What one shot of a video is to show.

    Attributes:
        text: What happens, and how the camera moves.
        image: uint8 (h, w, 3), 0 to 255: its first frame, of exactly the video's size.
    """

    text: str | None = None
    image: RGBImage | None = None


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VideoRequest(Request):
    """A request whose answer is a video of one or more shots, each of one length.

    `limits.frames` are drawn per shot, of which the video shows the first `limits.frames_kept`: at full size 145 and
    144.

    Attributes:
        dimension: (height, width) in pixels; None, or the only size that the limits have: (720, 1280) of `REEL`.
        fps: Frames per second, 24.
        seed: 0 to 2,147,483,646.
        limits: The size and the length of a shot that the model draws.
    """

    dimension: tuple[int, int] | None = None
    fps: int = 24
    seed: int = 42
    limits: VideoLimits = REEL

    def problems(self) -> Iterable[Problem]:
        """Every rule that the fields break."""
        yield from self.content_problems()
        height, width = self.limits.size
        if self.dimension is not None and not _is_pair(self.dimension, self.limits.size):
            yield Problem("dimension", checks.show(self.dimension), f"({height}, {width}), height and width, or None")
        if not checks.is_whole(self.fps) or self.fps != self.limits.fps:
            yield Problem("fps", checks.show(self.fps), f"{self.limits.fps}, frames per second")
        yield from checks.whole("seed", self.seed, SEED)

    @abc.abstractmethod
    def content_problems(self) -> Iterable[Problem]:
        """The rules that the fields of a subclass break."""

    @property
    @abc.abstractmethod
    def storyboard(self) -> tuple[ShotRequest, ...]:
        """What each shot shows, in order; every one has its text."""

    @property
    def size(self) -> tuple[int, int]:  # noqa: D102
        return self.limits.size

    @property
    def num_frames(self) -> int:
        """Frames of the whole video."""
        return len(self.storyboard) * self.limits.frames_kept

    def check_start(self, field: str, value: Any) -> list[Problem]:
        """What is wrong with an image that starts a shot."""
        return checks.image(field, value, self.limits, is_optional=True)


def _is_pair(value: Any, size: tuple[int, int]) -> bool:
    return isinstance(value, (tuple, list)) and tuple(value) == size
