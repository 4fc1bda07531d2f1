"""Scores on scenes: what the parser reads back from ground truth, from reconstructions, and from generated pictures."""

import dataclasses
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


def score(generate: Generate, scene_world: World, *, per_task: int = 64, seed: int = 0) -> Scored:
    """GenEval's six tasks: draws `per_task` pictures for each, parses them, and judges them against their prompts.

    Chance is what pictures of random training scenes would score on the same prompts.
    """
    prompts = geneval.make_prompts(
        scene_world.shapes, scene_world.colors, per_task, seed, max_count=scene_world.max_objects
    )
    pictures = generate([prompt.text for prompt in prompts], range(seed, seed + len(prompts)))
    judged = [
        geneval.judge(prompt, parser.parse(picture, scene_world))
        for prompt, picture in zip(prompts, pictures, strict=True)
    ]
    unrelated = source.Scenes(scene_world, seed=seed + 1, length=500)
    chance = geneval.chance_rates(prompts, [world.truth(unrelated.scene(i)) for i in range(len(unrelated))])
    return Scored(geneval.summarize(judged, chance), prompts, pictures, judged)
