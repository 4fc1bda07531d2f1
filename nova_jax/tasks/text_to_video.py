"""A video of one shot from a text, and perhaps from its first frame."""

import dataclasses
from collections.abc import Iterable

from nova_jax.tasks import checks
from nova_jax.tasks.image_inputs import RGBImage
from nova_jax.tasks.limits import SHOT_SECONDS, SHOT_TEXT_LENGTH
from nova_jax.tasks.problems import Problem
from nova_jax.tasks.request import ShotRequest, VideoRequest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TextToVideo(VideoRequest):
    """Film what a text says; `TEXT_VIDEO` in JSON.

    Six seconds at 24 fps are 144 frames, but a causal autoencoder codes 1 + 4k of them: 145 are drawn, and the last is
    left out of the video.

    Attributes:
        text: What happens, 1 to 512 characters; words about the camera go first or last.
        image: uint8 (h, w, 3), 0 to 255: the first frame, of exactly the video's size.
        duration_seconds: 6.
    """

    text: str
    image: RGBImage | None = None
    duration_seconds: int = SHOT_SECONDS

    def content_problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        yield from checks.text("text", self.text, SHOT_TEXT_LENGTH)
        yield from self.check_start("image", self.image)
        if not checks.is_whole(self.duration_seconds) or self.duration_seconds != SHOT_SECONDS:
            yield Problem(
                "duration_seconds", checks.show(self.duration_seconds), f"{SHOT_SECONDS}; longer videos have more shots"
            )

    @property
    def storyboard(self) -> tuple[ShotRequest, ...]:  # noqa: D102
        return (ShotRequest(self.text, self.image),)
