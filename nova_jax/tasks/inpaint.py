"""Change an image inside a region: add, replace, or remove what is there."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Bool

from nova_jax.tasks import checks
from nova_jax.tasks.image_inputs import Mask, RGBImage
from nova_jax.tasks.problems import Problem
from nova_jax.tasks.request import ImageRequest
from nova_jax.tasks.settings import ImageSettings


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inpaint(ImageRequest):
    """Redraw a region of an image and keep the rest; `INPAINTING` in JSON.

    Exactly one of `mask_prompt` and `mask_image` says where. Black is changed: the opposite of outpainting.

    Attributes:
        image: The source, uint8 (h, w, 3), 0 to 255.
        mask_prompt: The region in words, 1 to 1024 characters.
        mask_image: uint8 (h, w) of the source's size; 0 is changed, 255 is kept.
        text: What to draw there, 1 to 1024 characters; None: remove what is there.
        negative_text: What to keep out, 1 to 1024 characters.
        settings: Of the output, without width and height: these are the source's.
    """

    image: RGBImage
    mask_prompt: str | None = None
    mask_image: Mask | None = None
    text: str | None = None
    negative_text: str | None = None
    settings: ImageSettings = dataclasses.field(default_factory=ImageSettings)

    def problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        yield from checks.image("image", self.image, self.limits)
        yield from checks.one_mask(self.mask_prompt, self.mask_image, self.image)
        yield from checks.text("text", self.text, is_optional=True)
        yield from checks.text("negative_text", self.negative_text, is_optional=True)
        yield from self.settings.check_no_size()

    @property
    def size(self) -> tuple[int, int]:  # noqa: D102
        return self.image.shape[:2]

    @property
    def mask(self) -> Bool[np.ndarray, "h w"] | None:
        """True where pixels are to be changed; None when a prompt says where."""
        return None if self.mask_image is None else self.mask_image == 0

    @property
    def removes(self) -> bool:
        """Whether what is in the region is to go, and its surroundings to close over it."""
        return self.text is None
