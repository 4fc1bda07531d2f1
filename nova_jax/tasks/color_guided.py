"""An image from a text, in given colours."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import UInt8

from nova_jax.tasks import checks
from nova_jax.tasks.image_inputs import RGBImage
from nova_jax.tasks.limits import COLORS
from nova_jax.tasks.problems import Problem
from nova_jax.tasks.request import ImageRequest
from nova_jax.tasks.settings import ImageSettings


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ColorGuided(ImageRequest):
    """Draw what a text says with a palette; `COLOR_GUIDED_GENERATION` in JSON.

    Attributes:
        colors: 1 to 10 of "#RRGGBB", hexadecimal digits of either case.
        text: What to draw, 1 to 1024 characters.
        reference_image: uint8 (h, w, 3), 0 to 255; gives subject and style, and its colours join the palette.
        negative_text: What to keep out, 1 to 1024 characters.
        settings: Of the output.
    """

    colors: Sequence[str]
    text: str
    reference_image: RGBImage | None = None
    negative_text: str | None = None
    settings: ImageSettings = dataclasses.field(default_factory=ImageSettings)

    def problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        yield from checks.items("colors", self.colors, COLORS, "colours", checks.color)
        yield from checks.text("text", self.text)
        yield from checks.image("reference_image", self.reference_image, self.limits, is_optional=True)
        yield from checks.text("negative_text", self.negative_text, is_optional=True)
        yield from self.settings.check_size(self.limits)

    @property
    def size(self) -> tuple[int, int]:  # noqa: D102
        return self.settings.size(self.limits)

    @property
    def rgb(self) -> UInt8[np.ndarray, "n 3"]:
        """The palette as numbers, 0 to 255, in the order given."""
        return np.array([list(bytes.fromhex(color[1:])) for color in self.colors], np.uint8)
