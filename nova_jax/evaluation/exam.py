"""What an exam of a model consists of: questions in parts, numbers that compare parts, and bars to clear.

The exam belongs to the data a model was trained on, which knows the true images (`Exam`); how it is sat and what it
gives is `task_evaluation`. A part is one capability; a part with a dial asks the same thing at several settings of one
number of the request, and what counts is whether the score follows it.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from nova_jax.evaluation import intervals
from nova_jax.evaluation.intervals import Estimate
from nova_jax.tasks import Limits, VideoLimits
from nova_jax.tasks.request import Request

Clip = UInt8[np.ndarray, "f h w 3"]  # a clip; a still image is one of one frame
Clips = UInt8[np.ndarray, "n f h w 3"]
Judged = dict[str, bool | float | None]  # the scores of one image; None does not apply
Level = Literal["ceiling", "model", "chance"]


class Locate(NamedTuple):
    """A question for the mask of what a phrase means in an image; the answer is white there and black elsewhere."""

    image: UInt8[np.ndarray, "h w 3"]
    prompt: str


class Apart(NamedTuple):
    """A question for clips that are drawn each by itself and shown one after the other."""

    requests: tuple[Request, ...]


Ask = Request | Locate | Apart


class Question(NamedTuple):
    """One thing to draw.

    Attributes:
        ask: What is asked for.
        truth: The right image, or a right one; of a background removed the alpha as gray. With a dial: what the full
            setting leads to.
        groups: Names under which its scores are given once more.
        setting: Where the dial stands.
    """

    ask: Ask
    truth: Clip
    groups: tuple[str, ...] = ()
    setting: float | None = None


class Part(NamedTuple):
    """One capability.

    Attributes:
        name: Of the part.
        questions: Two or more, their answers of one shape. With a dial: all settings of one element, then those of the
            next.
        judge: One image per question -> the scores of each.
        dial: What is turned; empty where nothing is.
    """

    name: str
    questions: tuple[Question, ...]
    judge: Callable[[Clips], list[Judged]]
    dial: str = ""


class Bar(NamedTuple):
    """What a score has to reach; `upper` is the other bound of a range."""

    part: str
    score: str
    side: Literal["at least", "at most", "within"]
    bound: float
    upper: float = np.inf

    def __str__(self) -> str:
        if self.side == "within":
            return f"{self.bound:g} to {self.upper:g}"
        return f"{'≥' if self.side == 'at least' else '≤'} {self.bound:g}"

    def is_met(self, value: float) -> bool:
        """Whether a value reaches it; one that is not a number does not."""
        return value <= self.bound if self.side == "at most" else self.bound <= value <= self.upper


class Comparison(NamedTuple):
    """A number made of two scores.

    Attributes:
        part: Which part it is listed with.
        name: Of the number.
        first: (part, score, ceiling or model or chance).
        second: Likewise.
        combine: The two scores -> the number.
    """

    part: str
    name: str
    first: tuple[str, str, Level]
    second: tuple[str, str, Level]
    combine: Callable[[Estimate, Estimate], Estimate]


@runtime_checkable
class Exam(Protocol):
    """What the data of a run offers as `exam(per_task)`."""

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Numbers made of two scores."""
        ...

    @property
    def bars(self) -> tuple[Bar, ...]:
        """What is to be reached."""
        ...

    def parts(self, limits: Limits | VideoLimits, guidance: float) -> list[Part]:
        """All questions, as requests within a model's limits and of a guidance scale; videos take none."""
        ...


def lost(before: Estimate, after: Estimate) -> Estimate:
    """How far a score has fallen, in its own unit; the interval takes the two for independent."""
    low, high = intervals.difference(*((s["value"], s["low"], s["high"]) for s in (after, before)))
    return {"value": before["value"] - after["value"], "low": low, "high": high, "n": min(before["n"], after["n"])}


def points_lost(before: Estimate, after: Estimate) -> Estimate:
    """How many hundredths a rate has fallen."""
    fallen = lost(before, after)
    return fallen | {name: 100 * fallen[name] for name in ("value", "low", "high")}


def points_gained(before: Estimate, after: Estimate) -> Estimate:
    """How many hundredths a rate has risen."""
    return points_lost(after, before)


def share_left(before: Estimate, after: Estimate) -> Estimate:
    """The share of a rate that is left; its interval joins the ends of both, so it is wider than 95 %."""

    def ratio(part: float, whole: float) -> float:
        return part / whole if whole else np.nan

    return {
        "value": ratio(after["value"], before["value"]),
        "low": ratio(after["low"], before["high"]),
        "high": ratio(after["high"], before["low"]),
        "n": min(before["n"], after["n"]),
    }
