"""The exam of a video model of moving scenes: requests whose right answers are known, part by part, and the bars.

    video, video_held_out    caption
    camera                   caption of actors standing still under every motion of the camera, as often as each other
    start                    caption and first frame
    film                     the captions of `shots` shots of one cast, of which the later ones may leave out its colours
    film_apart               the same captions, each filmed by itself, without knowing of the others
    still                    caption of a single picture

Shots are those of `reel_source.Reels` under a seed that no training uses, scores those of `reel_scoring`. What a film
gains over its shots apart (`carried_gain`) is what it remembers: apart, a shot can only guess the colours left out.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines.scenes import captions, parser, reel_captions, reel_render, reel_sampling, reel_scoring, reel_world
from data_pipelines.scenes import source as random_access
from data_pipelines.scenes.reel_source import TASKS, Reels
from data_pipelines.scenes.reel_world import CAMERA_MOTIONS, Film, ReelWorld, Shot
from data_pipelines.scenes.world import Scene
from nova_jax import tasks
from nova_jax.evaluation import exam
from nova_jax.evaluation.exam import Bar, Comparison, Judged, Part, Pictures, Question

SEED = 2001  # training has 0, autoencoders 1 and 1001

BARS = (
    Bar("video", "correct", "at least", 0.9),
    Bar("video", "direction", "at least", 0.9),
    Bar("video", "persistent", "at least", 0.98),
    Bar("video_held_out", "correct", "at least", 0.85),
    Bar("camera", "family", "at least", 0.9),
    Bar("start", "psnr_gap", "at most", 1),
    Bar("start", "motion", "within", 0.8, 1.25),
    Bar("film", "cuts", "at least", 0.99),
    Bar("film", "carried_gain", "at least", 20),
    Bar("film", "leaked", "at most", 0.02),
    Bar("still", "correct", "at least", 0.95),
)
COMPARISONS = (
    Comparison("start", "psnr_gap", ("start", "start_psnr", "ceiling"), ("start", "start_psnr", "model"), exam.lost),
    Comparison(
        "film", "carried_gain", ("film_apart", "carried", "model"), ("film", "carried", "model"), exam.points_gained
    ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exam:
    """Questions about a world; an `evaluation.exam.Exam`.

    Attributes:
        world: With held-out pairs.
        per_task: Questions in each part, 2 or more: chance is what the clip of another question scores.
        shots: Of a film, 2 to 4.
        seed: 0 to 2^32 - 1, none that the model was trained on.
        text_length: Bytes per caption, the start token included; longer ones are cut, as in training.
        comparisons: Numbers made of two scores.
        bars: What is to be reached.
    """

    world: ReelWorld = reel_world.REEL_36
    per_task: int = 64
    shots: int = 3
    seed: int = SEED
    text_length: int = 128
    comparisons: tuple[Comparison, ...] = COMPARISONS
    bars: tuple[Bar, ...] = BARS

    def __post_init__(self) -> None:
        if self.per_task < 2:
            raise ValueError(f"per_task is {self.per_task}; give 2 or more.")
        if not 2 <= self.shots <= 4:
            raise ValueError(f"shots is {self.shots}; the world's films have 2 to 4.")
        if not self.world.held_out:
            raise ValueError("an exam needs a world with held-out pairs.")

    def parts(self, limits: tasks.VideoLimits, guidance: float) -> list[Part]:
        """All parts.

        Args:
            limits: Of the model.
            guidance: Scale of the requests of single pictures, 1.1 to 10; that of videos is for whoever draws them.

        Raises:
            ValueError: The model does not film clips of the world's size and length.
        """
        if (limits.height, limits.width, limits.frames) != (self.world.height, self.world.width, self.world.frames):
            raise ValueError(
                f"this exam asks for {self.world.frames} frames of {self.world.width} x {self.world.height} pixels, and "
                f"the model films {limits.frames} of {limits.width} x {limits.height}"
            )
        return [
            self._clips("video", self._shots(held_out=False), limits),
            self._clips("video_held_out", self._shots(held_out=True), limits),
            self._clips("camera", [self._still_cast(index) for index in range(self.per_task)], limits),
            self._clips("start", self._shots(held_out=False, first=self.per_task), limits, is_started=True),
            *self._films(limits),
            self._stills(guidance),
        ]
