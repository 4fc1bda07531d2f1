"""Every range of a request in one place, and the sizes that a model takes.

The numbers are the public ones of Amazon Nova Canvas (user guide, "Request and response structure for image
generation" and "Image generation: inputs and outputs") and of Amazon Nova Reel 1.1 ("Video generation access and
usage"). Where these pages disagree: pixels stay strictly below 2048 x 2048, and seeds end at 2,147,483,646.
"""

import dataclasses
from typing import NamedTuple


class Range(NamedTuple):
    """From `low` to `high`, both allowed."""

    low: float | int
    high: float | int

    def __str__(self) -> str:
        return f"from {self.low:,} to {self.high:,}"


TEXT_LENGTH = Range(1, 1024)  # characters (Unicode code points), of each text by itself
CFG_SCALE = Range(1.1, 10)
SEED = Range(0, 2_147_483_646)
COUNT = Range(1, 5)  # images that one request draws
CONTROL_STRENGTH = Range(0, 1)
SIMILARITY_STRENGTH = Range(0.2, 1)
VARIED_IMAGES = Range(1, 5)
COLORS = Range(1, 10)

SHOT_TEXT_LENGTH = Range(1, 512)  # characters of the text of one shot
FILM_TEXT_LENGTH = Range(1, 4000)  # of a text that is split into shots
SHOT_SECONDS = 6
FRAMES_PER_LATENT = 4  # of a causal video autoencoder, after the first frame, which has a latent of its own
FILM_SECONDS = Range(12, 120)  # in steps of SHOT_SECONDS
SHOTS = Range(1, 20)  # the fewest are not published; the most follow from FILM_SECONDS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The sizes that a model draws and reads, in pixels.

    Images that are read need not be divisible by `multiple`; all else holds for them too.

    Attributes:
        min_side: The shortest side allowed.
        max_side: The longest side allowed.
        multiple: Divides both sides of what is drawn.
        default_side: Width and height of what is drawn, where a request does not say.
        pixel_bound: width x height stays below it.
        max_aspect: The longer side is at most so many times the shorter one.
    """

    min_side: int = 320
    max_side: int = 4096
    multiple: int = 16
    default_side: int = 1024
    pixel_bound: int = 4_194_304
    max_aspect: float | int = 4

    def __post_init__(self) -> None:
        if not (1 <= self.min_side <= self.max_side and self.multiple >= 1 and self.max_aspect >= 1):
            raise ValueError(
                f"min_side={self.min_side}, max_side={self.max_side}, multiple={self.multiple} and "
                f"max_aspect={self.max_aspect} must be 1 or more, and min_side not above max_side"
            )
        if not self.is_side(self.default_side) or self.default_side**2 >= self.pixel_bound:
            raise ValueError(
                f"default_side={self.default_side} must be {self.sides}, its square below "
                f"pixel_bound={self.pixel_bound:,}"
            )

    @property
    def sides(self) -> str:
        """The sides that can be drawn, in words."""
        return f"a whole number {Range(self.min_side, self.max_side)} that {self.multiple} divides"

    def is_side(self, side: int) -> bool:
        """Whether an image may be drawn so wide, or so high."""
        return self.min_side <= side <= self.max_side and side % self.multiple == 0

    def refusals_of_sides(self, width: int, height: int) -> list[str]:
        """Where a side of an image that is read is too short or too long: what is allowed, in words."""
        is_right = self.min_side <= min(width, height) and max(width, height) <= self.max_side
        return [] if is_right else [f"{Range(self.min_side, self.max_side)} pixels on each side"]

    def refusals_of_shape(self, width: int, height: int) -> list[str]:
        """What is allowed, in words, for each of aspect ratio and pixel count that is not."""
        refusals = []
        if max(width, height) > self.max_aspect * min(width, height):
            refusals.append(f"within an aspect ratio of 1:{self.max_aspect:g} to {self.max_aspect:g}:1")
        if width * height >= self.pixel_bound:
            refusals.append(f"below {self.pixel_bound:,} pixels in all")
        return refusals


CANVAS = Limits()
TINY = Limits(min_side=32, max_side=256, multiple=8, default_side=64)  # for small models and tests


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoLimits:
    """The one size and length of shot that a model draws; images that start a shot have exactly that size.

    A causal video autoencoder codes 1 + 4k frames, and 6 s at 24 fps are 144: a shot is drawn with 145 frames, of which
    the first 144 are kept. A small model keeps all that it was trained on. Its shots are shorter, but a request counts
    each as 6 s all the same.

    Attributes:
        height: Of a frame, in pixels.
        width: Likewise.
        frames: How many are drawn per shot, 1 + 4k.
        fps: Frames per second.
    """

    height: int = 720
    width: int = 1280
    frames: int = 145
    fps: int = 24

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.fps) < 1:
            raise ValueError(f"height={self.height}, width={self.width} and fps={self.fps} must be 1 or more")
        if self.frames < 1 or self.frames % FRAMES_PER_LATENT != 1:
            raise ValueError(f"frames={self.frames} must be 1 + 4k, as the autoencoder codes them: {near(self.frames)}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width

    @property
    def pixel_bound(self) -> int:
        """Number of pixels that an image stays below."""
        return self.height * self.width + 1

    @property
    def frames_kept(self) -> int:
        """How many frames of a shot the video shows, from the first: 6 s of them, or all where it is shorter."""
        return min(self.frames, SHOT_SECONDS * self.fps)

    def refusals_of_sides(self, width: int, height: int) -> list[str]:
        """What is allowed, in words, where an image has another size than the video."""
        is_right = (height, width) == self.size
        return [] if is_right else [f"{self.width} x {self.height} pixels, the size of the video"]

    def refusals_of_shape(self, width: int, height: int) -> list[str]:
        """Nothing more is asked of an image."""
        del width, height
        return []


def near(frames: int) -> str:
    """The numbers 1 + 4k next to a number of frames, in words."""
    below = max(1, frames - (frames - 1) % FRAMES_PER_LATENT)
    above = below + FRAMES_PER_LATENT
    return f"{below}" if below == frames or frames < 1 else f"{below} or {above}"


AnyLimits = Limits | VideoLimits
REEL = VideoLimits()
TINY_REEL = VideoLimits(height=36, width=64, frames=25)  # for small models and tests
