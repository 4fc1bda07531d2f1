"""Scores on scenes: what the parser reads back from ground truth, from reconstructions, and from generated images."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.scenes import parser, randomness, world
from data_pipelines.scenes.world import Scene, World
from nova_jax.evaluation import geneval, intervals

UNRELATED = 500  # scenes that chance is measured on

Generate = Callable[[Sequence[str], Sequence[int]], np.ndarray]  # prompts, seeds -> uint8 (b, f, h, w, 3)


@dataclasses.dataclass(frozen=True)
class Ceiling:
    """How often the parser reads every object of a scene with its right shape and colour, and nothing else."""

    rate: float
    low: float
    high: float
    n: int


def read_back(images: np.ndarray, scenes: Sequence[Scene], of: World) -> Ceiling:
    """Parses images of scenes of a world and compares objects with the truth.

    Args:
        images: uint8 (n, f, h, w, 3), image i shows scene i.
        scenes: the ground truth.
        of: their world.
    """
    right = 0
    for image, scene in zip(images, scenes, strict=True):
        found = sorted((d.shape, d.color) for d in parser.parse(image, of))
        right += found == sorted((d.shape, d.color) for d in world.truth(scene))
    low, high = intervals.wilson(right, len(images))
    return Ceiling(right / len(images), low, high, len(images))


class Scored(NamedTuple):
    """Totals, and behind them every prompt, its image and the verdict on it."""

    summary: geneval.Summary
    prompts: list[geneval.Prompt]
    images: np.ndarray
    judged: list[geneval.Judged]


@dataclasses.dataclass(frozen=True)
class Scorer:
    """GenEval's six tasks on a world: prompts to draw images for, and what the images are worth.

    Chance is what images of random training scenes would score on the same prompts.
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
        """What unrelated images score, per task."""
        streams = (randomness.make_rng(self.seed + 1, index) for index in range(UNRELATED))
        unrelated = [world.truth(world.sample_scene(self.world, rng)) for rng in streams]
        return geneval.chance_rates(self.prompts, unrelated)

    def judge(self, images: Sequence[np.ndarray]) -> list[geneval.Judged]:
        """Parses one image per prompt, uint8 (f, h, w, 3), and judges it."""
        pairs = zip(self.prompts, images, strict=True)
        return [geneval.judge(prompt, parser.parse(image, self.world)) for prompt, image in pairs]

    def summarize(self, images: Sequence[np.ndarray]) -> geneval.Summary:
        """Scores of one image per prompt, with intervals."""
        return geneval.summarize(self.judge(images), self.chance)

    def score(self, generate: Generate) -> Scored:
        """Samples the images of all prompts, each from a seed of its own, and scores them."""
        seeds = list(range(self.seed, self.seed + len(self.prompts)))
        images = generate([prompt.text for prompt in self.prompts], seeds)
        judged = self.judge(list(images))
        return Scored(geneval.summarize(judged, self.chance), self.prompts, images, judged)
