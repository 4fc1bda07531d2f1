"""Change an image outside a region: a new background behind what is kept."""

import dataclasses
import typing
from collections.abc import Iterable
from typing import Literal

import numpy as np
from jaxtyping import Bool

from nova_jax.tasks import checks
from nova_jax.tasks.image_inputs import Mask, RGBImage
from nova_jax.tasks.problems import Problem
from nova_jax.tasks.request import ImageRequest
from nova_jax.tasks.settings import ImageSettings

Mode = Literal["DEFAULT", "PRECISE"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outpaint(ImageRequest):
    """Keep a region of an image and redraw the rest; `OUTPAINTING` in JSON.

    Exactly one of `mask_prompt` and `mask_image` says what is kept. White is changed: the opposite of inpainting.

    Attributes:
        image: The source, uint8 (h, w, 3), 0 to 255.
        mask_prompt: The region that is kept in words, 1 to 1024 characters.
        mask_image: uint8 (h, w) of the source's size; 255 is changed, 0 is kept.
        text: What to draw, 1 to 1024 characters.
        negative_text: What to keep out, 1 to 1024 characters.
        mode: The boundary: DEFAULT fades from the source into what is drawn, PRECISE is hard.
        settings: Of the output, without width and height: these are the source's.
    """

    image: RGBImage
    text: str
    mask_prompt: str | None = None
    mask_image: Mask | None = None
    negative_text: str | None = None
    mode: Mode = "DEFAULT"
    settings: ImageSettings = dataclasses.field(default_factory=ImageSettings)

    def problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        yield from checks.image("image", self.image, self.limits)
        yield from checks.one_mask(self.mask_prompt, self.mask_image, self.image)
        yield from checks.text("text", self.text)
        yield from checks.text("negative_text", self.negative_text, is_optional=True)
        yield from checks.choice("mode", self.mode, typing.get_args(Mode))
        yield from self.settings.check_no_size()

    @property
    def size(self) -> tuple[int, int]:  # noqa: D102
        return self.image.shape[:2]

    @property
    def mask(self) -> Bool[np.ndarray, "h w"] | None:
        """True where pixels are to be changed; None when a prompt says what is kept."""
        return None if self.mask_image is None else self.mask_image == 255
