"""Find the objects of an image and make all else transparent."""

import dataclasses
from collections.abc import Iterable

from nova_jax.tasks import checks
from nova_jax.tasks.image_inputs import RGBImage
from nova_jax.tasks.problems import Problem
from nova_jax.tasks.request import ImageRequest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RemoveBackground(ImageRequest):
    """Give an image a soft 8-bit alpha; `BACKGROUND_REMOVAL` in JSON.

    Attributes:
        image: The source, uint8 (h, w, 3), 0 to 255.
    """

    image: RGBImage

    def problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        yield from checks.image("image", self.image, self.limits)

    @property
    def size(self) -> tuple[int, int]:  # noqa: D102
        return self.image.shape[:2]
