"""GenEval's six compositional tasks over detected objects (Ghosh et al. 2023, arXiv:2310.11513).

GenEval asks a detector what a generated image shows and compares that with the prompt. Here the detector is whatever
turns an image into `Detected` objects; for images of the scenes world it is exact.

    single_object      "a circle"                           the shape, and nothing else *
    two_object         "a circle and a square"              one of each shape
    counting           "three circles"                      exactly as many of the shape
    colors             "a red circle"                       the shape in the colour
    position           "a circle left of a square"          both shapes, in the relation
    color_attribution  "a red circle and a blue square"     both shapes, each in its colour

As in GenEval, objects that were not asked for do no harm unless the count is the question, and of several of one shape
the most confident is judged. (*) GenEval tolerates company here too; a world without clutter does not have to.
`Judged.exact` is stricter for every task: the image shows what was asked for and nothing else. Overall is the mean of
the task rates.
"""

import collections
import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from nova_jax.evaluation import intervals

NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
RELATIONS = ("left of", "right of", "above", "below")


class Detected(NamedTuple):
    """One object found in an image. Lengths are fractions of the image's sides, (x, y) the centre, y down."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    width: float
    height: float
    confidence: float = 1.0


class Wanted(NamedTuple):
    """What a prompt says of one kind of object; an unnamed colour is None."""

    shape: str
    color: str | None = None
    number: int = 1


class Prompt(NamedTuple):
    """A prompt and what it asks for; `relation` is how the first wanted object lies to the second."""

    task: str
    text: str
    wanted: tuple[Wanted, ...]
    relation: str | None = None


class Judged(NamedTuple):
    """One image held against its prompt."""

    task: str
    correct: bool  # by the task's rule
    exact: bool  # correct, and nothing but what was asked for
    swapped: bool  # two colours asked for, each on the other's shape
    miscount: int  # |objects of the wanted shapes - asked for|


class TaskScore(NamedTuple):
    """A task's rate with its interval; `chance` is the rate of images that ignore the prompt."""

    rate: float
    low: float
    high: float
    n: int
    exact: float
    chance: float | None = None


class Summary(NamedTuple):
    """All tasks; `overall` is GenEval's score, the mean of the task rates."""

    tasks: dict[str, TaskScore]
    overall: float
    overall_exact: float
    swap_rate: float | None  # share of color_attribution images with the colours swapped
    count_error: float | None  # mean miscount over counting images


def phrase(shape: str, color: str | None = None, size: str | None = None, count: int = 1) -> str:
    """A noun phrase: "a circle", "an orange circle", "a small red circle", "three red circles"."""
    words = [word for word in (size, color) if word]
    if count > 1:
        plural = shape + ("es" if shape.endswith("s") else "s")
        return " ".join([NUMBERS[count - 1], *words, plural])
    text = " ".join([*words, shape])
    return f"{'an' if text[0] in 'aeiou' else 'a'} {text}"


def make_prompts(
    shapes: Sequence[str],
    colors: Sequence[str],
    per_task: int,
    seed: int = 0,
    *,
    pairs: Iterable[tuple[str, str]] | None = None,
    max_count: int = 4,
) -> list[Prompt]:
    """`per_task` prompts of each task: every combination once in random order, then all again as often as needed.

    Args:
        shapes: The vocabulary of shapes, two or more.
        colors: The vocabulary of colours, two or more.
        per_task: Prompts per task.
        seed: Of the order.
        pairs: Allowed (shape, colour) pairs for the prompts that name colours, such as a world's held-out pairs.
        max_count: Largest count asked for; the smallest is two.

    Raises:
        ValueError: A vocabulary too small to make the tasks.
    """
    if len(shapes) < 2 or len(colors) < 2 or not 2 <= max_count <= len(NUMBERS):
        raise ValueError(
            f"Prompts need 2 or more shapes, 2 or more colours and max_count from 2 to {len(NUMBERS)}; "
            f"given {len(shapes)}, {len(colors)} and {max_count}."
        )
    colored = [Wanted(*pair) for pair in (itertools.product(shapes, colors) if pairs is None else pairs)]
    two_shapes = [(Wanted(a), Wanted(b)) for a, b in itertools.permutations(shapes, 2)]
    attributed = [(a, b) for a, b in itertools.permutations(colored, 2) if a.shape != b.shape and a.color != b.color]
    if not attributed:
        raise ValueError("pairs has no two that differ in shape and in colour; give some that do.")
    combinations: dict[str, list[tuple[tuple[Wanted, ...], str | None]]] = {
        "single_object": [((Wanted(shape),), None) for shape in shapes],
        "two_object": [(both, None) for both in two_shapes],
        "counting": [((Wanted(shape, None, n),), None) for shape in shapes for n in range(2, max_count + 1)],
        "colors": [((one,), None) for one in colored],
        "position": [(both, relation) for both in two_shapes for relation in RELATIONS],
        "color_attribution": [(both, None) for both in attributed],
    }
    prompts = []
    for task, choices in combinations.items():
        rng = random.Random(f"{seed} {task}")
        rounds = (rng.sample(choices, len(choices)) for _ in itertools.count())
        chosen = itertools.islice(itertools.chain.from_iterable(rounds), per_task)
        prompts += [Prompt(task, _text(wanted, relation), wanted, relation) for wanted, relation in chosen]
    return prompts


def _text(wanted: tuple[Wanted, ...], relation: str | None) -> str:
    return f" {relation or 'and'} ".join(phrase(w.shape, w.color, count=w.number) for w in wanted)


def relations(a: Detected, b: Detected) -> frozenset[str]:
    """How `a` lies to `b`, by GenEval's rule: none, one or (on a diagonal) two of `RELATIONS`.

    The offset of the centres is shortened along each axis by a tenth of the two boxes' sides; a relation holds where
    more than half of the whole offset's length is left along its axis.
    """
    dx, dy = a.x - b.x, a.y - b.y
    length = math.hypot(dx, dy)
    if length == 0:
        return frozenset()
    along_x = math.copysign(max(abs(dx) - 0.1 * (a.width + b.width), 0.0), dx) / length
    along_y = math.copysign(max(abs(dy) - 0.1 * (a.height + b.height), 0.0), dy) / length
    holds = (along_x < -0.5, along_x > 0.5, along_y < -0.5, along_y > 0.5)
    return frozenset(relation for relation, true in zip(RELATIONS, holds, strict=True) if true)


def _of_shape(detections: Sequence[Detected], shape: str) -> list[Detected]:
    """The detections of a shape, most confident first."""
    return sorted((d for d in detections if d.shape == shape), key=lambda d: -d.confidence)


def single_object(prompt: Prompt, detections: Sequence[Detected]) -> bool:
    """The image shows one object, of the wanted shape."""
    return [d.shape for d in detections] == [prompt.wanted[0].shape]


def two_object(prompt: Prompt, detections: Sequence[Detected]) -> bool:
    """The image shows each wanted shape."""
    return all(_of_shape(detections, wanted.shape) for wanted in prompt.wanted)


def counting(prompt: Prompt, detections: Sequence[Detected]) -> bool:
    """The image shows exactly as many of the shape as asked for."""
    return _miscount(prompt, detections) == 0


def colors(prompt: Prompt, detections: Sequence[Detected]) -> bool:
    """Each wanted shape appears, the most confident one in its wanted colour."""
    best = [_of_shape(detections, wanted.shape)[:1] for wanted in prompt.wanted]
    return all(b and b[0].color == wanted.color for b, wanted in zip(best, prompt.wanted, strict=True))


def position(prompt: Prompt, detections: Sequence[Detected]) -> bool:
    """Both wanted shapes appear, the first in the asked relation to the second."""
    if not two_object(prompt, detections):
        return False
    first, second = (_of_shape(detections, wanted.shape)[0] for wanted in prompt.wanted)
    return prompt.relation in relations(first, second)


color_attribution = colors  # the same rule, asked of two objects


TASKS: dict[str, Callable[[Prompt, Sequence[Detected]], bool]] = {
    "single_object": single_object,
    "two_object": two_object,
    "counting": counting,
    "colors": colors,
    "position": position,
    "color_attribution": color_attribution,
}


def score(prompt: Prompt, detections: Sequence[Detected]) -> bool:
    """Whether the image is right by the rule of the prompt's task."""
    return TASKS[prompt.task](prompt, detections)


def judge(prompt: Prompt, detections: Sequence[Detected]) -> Judged:
    """Everything that is asked of one image."""
    correct = score(prompt, detections)
    return Judged(
        task=prompt.task,
        correct=correct,
        exact=correct and _shows_only(prompt, detections),
        swapped=_swapped(prompt, detections),
        miscount=_miscount(prompt, detections),
    )


def _miscount(prompt: Prompt, detections: Sequence[Detected]) -> int:
    return sum(abs(len(_of_shape(detections, wanted.shape)) - wanted.number) for wanted in prompt.wanted)


def _shows_only(prompt: Prompt, detections: Sequence[Detected]) -> bool:
    """The objects are the wanted ones, one to one. A prompt names different shapes, so shapes decide the match."""
    asked = collections.Counter({wanted.shape: wanted.number for wanted in prompt.wanted})
    if collections.Counter(d.shape for d in detections) != asked:
        return False
    colors_of = {wanted.shape: wanted.color for wanted in prompt.wanted}
    return all(colors_of[d.shape] in (None, d.color) for d in detections)


def _swapped(prompt: Prompt, detections: Sequence[Detected]) -> bool:
    if prompt.task != "color_attribution":
        return False
    a, b = prompt.wanted
    return colors(prompt._replace(wanted=(a._replace(color=b.color), b._replace(color=a.color))), detections)


def summarize(judged: Sequence[Judged], chance: Mapping[str, float] | None = None, confidence: float = 0.95) -> Summary:
    """Rates per task with Wilson intervals, and their mean; tasks without images are left out.

    Args:
        judged: One entry per image, of any tasks in any order.
        chance: Rates to report as chance levels, from `chance_rates`.
        confidence: Of the intervals.
    """
    if not judged:
        raise ValueError("There is nothing to summarize; judge at least one image.")
    tasks = {}
    for task in (t for t in TASKS if any(j.task == t for j in judged)):
        of_task = [j for j in judged if j.task == task]
        right, n = sum(j.correct for j in of_task), len(of_task)
        low, high = intervals.wilson(right, n, confidence)
        exact = sum(j.exact for j in of_task) / n
        tasks[task] = TaskScore(right / n, low, high, n, exact, chance[task] if chance is not None else None)
    return Summary(
        tasks=tasks,
        overall=sum(t.rate for t in tasks.values()) / len(tasks),
        overall_exact=sum(t.exact for t in tasks.values()) / len(tasks),
        swap_rate=_mean([j.swapped for j in judged if j.task == "color_attribution"]),
        count_error=_mean([j.miscount for j in judged if j.task == "counting"]),
    )


def chance_rates(prompts: Sequence[Prompt], images: Sequence[Sequence[Detected]]) -> dict[str, float]:
    """The rate of each task when images have nothing to do with prompts: every prompt against every image.

    With the true objects of independent scenes as `images`, this is what a model reaches that has learnt what
    images look like and ignores the text.
    """
    rates = {}
    for task in dict.fromkeys(prompt.task for prompt in prompts):
        distinct = collections.Counter(prompt for prompt in prompts if prompt.task == task)
        hits = sum(times * sum(score(p, image) for image in images) for p, times in distinct.items())
        rates[task] = hits / (sum(distinct.values()) * len(images))
    return rates


def _mean(values: Sequence[int]) -> float | None:
    return sum(values) / len(values) if values else None
