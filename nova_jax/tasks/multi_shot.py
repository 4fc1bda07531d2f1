"""A video of several shots: from one text that is split, or from a list of shots."""

import abc
import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from nova_jax.tasks import checks, shots
from nova_jax.tasks.limits import FILM_SECONDS, FILM_TEXT_LENGTH, SHOT_SECONDS, SHOT_TEXT_LENGTH, SHOTS
from nova_jax.tasks.problems import Problem
from nova_jax.tasks.request import ShotRequest, VideoRequest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MultiShot(VideoRequest, abc.ABC):
    """Film several shots of one cast; either `MultiShotAutomated` or `MultiShotManual`.

    Every shot is one of `TextToVideo`: 145 frames drawn, 144 shown at full size.
    """


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MultiShotAutomated(MultiShot):
    """Film one long text, split into shots; `MULTI_SHOT_AUTOMATED` in JSON.

    Attributes:
        text: 1 to 4000 characters; best a sentence for each shot, and one for the look that all share. See
            `shots.split_shots`.
        duration_seconds: 12 to 120 in steps of 6, a shot for each 6.
    """

    text: str
    duration_seconds: int

    def content_problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        yield from checks.text("text", self.text, FILM_TEXT_LENGTH)
        if isinstance(self.text, str) and self.text and not self.text.split():
            yield Problem("text", "nothing but white space", "a text with words")
        found = checks.whole("duration_seconds", self.duration_seconds, FILM_SECONDS)
        if found or self.duration_seconds % SHOT_SECONDS:
            given = checks.show(self.duration_seconds)
            yield Problem("duration_seconds", given, f"a whole number {FILM_SECONDS} that {SHOT_SECONDS} divides")

    @property
    def storyboard(self) -> tuple[ShotRequest, ...]:  # noqa: D102
        prompts = shots.split_shots(self.text, self.duration_seconds // SHOT_SECONDS).prompts
        return tuple(ShotRequest(prompt) for prompt in prompts)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MultiShotManual(MultiShot):
    """Film a list of shots; `MULTI_SHOT_MANUAL` in JSON, where every shot says its text.

    Attributes:
        shots: 1 to 20 of `ShotRequest`: a text of 1 to 512 characters, and perhaps the first frame. As on a storyboard,
            a shot without text goes on with that of the shot before; the first needs one.
    """

    shots: Sequence[ShotRequest]

    def content_problems(self) -> Iterable[Problem]:  # noqa: D102 (the base says it)
        def check_shot(field: str, value: Any) -> list[Problem]:
            if not isinstance(value, ShotRequest):
                return [Problem(field, checks.show(value), "a ShotRequest of a text, and perhaps an image")]
            is_optional = field != "shots[0]"
            found = checks.text(f"{field}.text", value.text, SHOT_TEXT_LENGTH, is_optional=is_optional)
            return found + self.check_start(f"{field}.image", value.image)

        yield from checks.items("shots", self.shots, SHOTS, "shots", check_shot)

    @property
    def storyboard(self) -> tuple[ShotRequest, ...]:  # noqa: D102
        found: list[ShotRequest] = []
        for shot in self.shots:
            found.append(shot if shot.text is not None else shot._replace(text=found[-1].text))
        return tuple(found)

    @property
    def duration_seconds(self) -> int:
        """6 for each shot."""
        return SHOT_SECONDS * len(self.shots)
