"""Scores on scenes: what the parser reads back from ground truth, from reconstructions, and from generated pictures."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.scenes import parser, source, world
from data_pipelines.scenes.world import World
from nova_jax.evaluation import geneval, intervals

Generate = Callable[[Sequence[str], Sequence[int]], np.ndarray]  # prompts, seeds -> uint8 (b, f, h, w, 3)


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """How often the parser reads every object of a scene with its right shape and colour, and nothing else."""

    rate: float
    low: float
    high: float
    n: int


def read_back(pictures: np.ndarray, scenes: source.Scenes) -> Ceiling:
    """Parses pictures of the first scenes of a source and compares objects with the truth.

    Args:
        pictures: uint8 (n, f, h, w, 3), picture i shows scene i.
        scenes: where they come from.
    """
    right = 0
    for index, picture in enumerate(pictures):
        found = sorted((d.shape, d.color) for d in parser.parse(picture, scenes.world))
        right += found == sorted((d.shape, d.color) for d in world.truth(scenes.scene(index)))
    low, high = intervals.wilson(right, len(pictures))
    return Ceiling(right / len(pictures), low, high, len(pictures))


class Scored(NamedTuple):
    """Totals, and behind them every prompt, its picture and the verdict on it."""

    summary: geneval.Summary
    prompts: list[geneval.Prompt]
    pictures: np.ndarray
    judged: list[geneval.Judged]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """GenEval's six tasks on a world: prompts to draw pictures for, and what the pictures are worth.

    Chance is what pictures of random training scenes would score on the same prompts.
    """

    world: World
    per_task: int = 64
    seed: int = 0

    @functools.cached_property
    def prompts(self) -> list[geneval.Prompt]:
        """`per_task` prompts for each task, task by task."""
        shapes, colors, count = self.world.shapes, self.world.colors, self.world.max_objects
        return geneval.make_prompts(shapes, colors, self.per_task, self.seed, max_count=count)

    @functools.cached_property
    def chance(self) -> dict[str, float]:
        """What unrelated pictures score, per task."""
        unrelated = source.Scenes(self.world, seed=self.seed + 1, length=500)
        return geneval.chance_rates(self.prompts, [world.truth(unrelated.scene(i)) for i in range(len(unrelated))])

    def judge(self, pictures: Sequence[np.ndarray]) -> list[geneval.Judged]:
        """Parses one picture per prompt, uint8 (f, h, w, 3), and judges it."""
        pairs = zip(self.prompts, pictures, strict=True)
        return [geneval.judge(prompt, parser.parse(picture, self.world)) for prompt, picture in pairs]

    def summarize(self, pictures: Sequence[np.ndarray]) -> geneval.Summary:
        """Scores of one picture per prompt, with intervals."""
        return geneval.summarize(self.judge(pictures), self.chance)


def score(generate: Generate, scene_world: World, *, per_task: int = 64, seed: int = 0) -> Scored:
    """Draws the pictures of a `Scorer`'s prompts and scores them."""
    scorer = Scorer(scene_world, per_task, seed)
    pictures = generate([prompt.text for prompt in scorer.prompts], range(seed, seed + len(scorer.prompts)))
    judged = scorer.judge(list(pictures))
    return Scored(geneval.summarize(judged, scorer.chance), scorer.prompts, pictures, judged)
