"""An image from a text, its layout taken from a condition image if there is one."""

import dataclasses
import typing
from collections.abc import Iterable
from typing import Literal

from nova_jax.tasks import checks
from nova_jax.tasks.image_inputs import RGBImage
from nova_jax.tasks.limits import CONTROL_STRENGTH
from nova_jax.tasks.problems import Problem
from nova_jax.tasks.request import ImageRequest
from nova_jax.tasks.settings import ImageSettings

Style = Literal[
    "3D_ANIMATED_FAMILY_FILM",
    "DESIGN_SKETCH",
    "FLAT_VECTOR_ILLUSTRATION",
    "GRAPHIC_NOVEL_ILLUSTRATION",
    "MAXIMALISM",
    "MIDCENTURY_RETRO",
    "PHOTOREALISM",
    "SOFT_DIGITAL_PAINTING",
]
ControlMode = Literal["CANNY_EDGE", "SEGMENTATION"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextToImage(ImageRequest):
    """Draw what a text says; `TEXT_IMAGE` in JSON.

    Attributes:
        text: What to draw, 1 to 1024 characters.
        negative_text: What to keep out, 1 to 1024 characters.
        style: One of eight looks.
        condition_image: uint8 (h, w, 3), 0 to 255; layout and composition follow it. Of any allowed size.
        control_mode: What is followed: its contours, or the areas of its segmentation.
        control_strength: How closely, 0 (not at all) to 1. Without a condition image neither is used.
        settings: Of the output.
    """

    text: str
    negative_text: str | None = None
    style: Style | None = None
    condition_image: RGBImage | None = None
    control_mode: ControlMode = "CANNY_EDGE"
    control_strength: float | int = 0.7
    settings: ImageSettings = dataclasses.field(default_factory=ImageSettings)

    def problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        yield from checks.text("text", self.text)
        yield from checks.text("negative_text", self.negative_text, is_optional=True)
        yield from checks.choice("style", self.style, typing.get_args(Style), is_optional=True)
        yield from checks.image("condition_image", self.condition_image, self.limits, is_optional=True)
        yield from checks.choice("control_mode", self.control_mode, typing.get_args(ControlMode))
        yield from checks.number("control_strength", self.control_strength, CONTROL_STRENGTH)
        yield from self.settings.check_size(self.limits)

    @property
    def size(self) -> tuple[int, int]:  # noqa: D102
        return self.settings.size(self.limits)
