"""New images of what one to five images show."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from nova_jax.tasks import checks
from nova_jax.tasks.image_inputs import RGBImage
from nova_jax.tasks.limits import SIMILARITY_STRENGTH, VARIED_IMAGES
from nova_jax.tasks.problems import Problem
from nova_jax.tasks.request import ImageRequest
from nova_jax.tasks.settings import ImageSettings


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Vary(ImageRequest):
    """Keep the content of images, vary their style and background; `IMAGE_VARIATION` in JSON.

    Attributes:
        images: 1 to 5 of uint8 (h, w, 3), 0 to 255; each of any allowed size.
        similarity_strength: How close to stay, 0.2 to 1.
        text: What to draw, 1 to 1024 characters; None: what the images show.
        negative_text: What to keep out, 1 to 1024 characters.
        settings: Of the output.
    """

    images: Sequence[RGBImage]
    similarity_strength: float | int = 0.7
    text: str | None = None
    negative_text: str | None = None
    settings: ImageSettings = dataclasses.field(default_factory=ImageSettings)

    def problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        def check_image(field: str, value: Any) -> list[Problem]:
            return checks.image(field, value, self.limits)

        yield from checks.items("images", self.images, VARIED_IMAGES, "images", check_image)
        yield from checks.number("similarity_strength", self.similarity_strength, SIMILARITY_STRENGTH)
        yield from checks.text("text", self.text, is_optional=True)
        yield from checks.text("negative_text", self.negative_text, is_optional=True)
        yield from self.settings.check_size(self.limits)

    @property
    def size(self) -> tuple[int, int]:  # noqa: D102
        return self.settings.size(self.limits)
