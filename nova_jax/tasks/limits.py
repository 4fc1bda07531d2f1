"""Every range of a request in one place, and the sizes that a model takes.

The numbers are the public ones of Amazon Nova Canvas (user guide, "Request and response structure for image
generation" and "Image generation: inputs and outputs"). Where its pages disagree: pixels stay strictly below 2048 x
2048, and seeds end at 2,147,483,646.
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
COUNT = Range(1, 5)  # pictures that one request draws
CONTROL_STRENGTH = Range(0, 1)
SIMILARITY_STRENGTH = Range(0.2, 1)
VARIED_IMAGES = Range(1, 5)
COLORS = Range(1, 10)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """The sizes that a model draws and reads, in pixels.

    Pictures that are read need not be divisible by `multiple`; all else holds for them too.

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
        """Whether a picture may be drawn so wide, or so high."""
        return self.min_side <= side <= self.max_side and side % self.multiple == 0

    def refusals_of_sides(self, width: int, height: int) -> list[str]:
        """Where a side of a picture that is read is too short or too long: what is allowed, in words."""
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
