"""Editing tasks of scenes as random-access sources: elements of one task, and single images of every kind."""

import dataclasses
from collections.abc import Callable
from typing import SupportsIndex, TypedDict

import numpy as np
from jaxtyping import UInt8

from data_pipelines.scenes import randomness, world
from data_pipelines.scenes.editing import drawing, elements
from data_pipelines.scenes.exams import editing_exam
from data_pipelines.scenes.world import World
from data_pipelines.sources import base


class Image(TypedDict):
    """An image of one frame."""

    pixels: UInt8[np.ndarray, "1 h w 3"]


@dataclasses.dataclass(frozen=True)
class CanvasScenes(elements.Elements, base.Examinable):
    """Elements of one task, to train on; the exam asks for all tasks."""

    def exam(self, per_task: int, cut: Callable[[str], str]) -> editing_exam.Exam:
        """Questions about the world, `per_task` of each task, in captions that `cut` shortens as in training."""
        return editing_exam.Exam(world=self.world, per_task=per_task, cut=cut)


@dataclasses.dataclass(frozen=True)
class CanvasPictures:
    """Single images of every kind that the tasks show a model or ask it for, to train an autoencoder on.

    An image is any one of an element of a random task: its target, source, masked source (mid gray where the mask is),
    mask, control image or one of its references.

    Attributes:
        world: Vocabulary and prior.
        seed: 0 to 2^32 - 1; different seeds give unrelated images.
        length: How many elements `len` reports.
    """

    world: World = world.CANVAS_32
    seed: int = 0
    length: int = 1_000_000

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SupportsIndex) -> Image:
        number = randomness.check_index(index, self.length)
        rng = randomness.make_rng(self.seed | ((len(elements.TASKS) + 1) << 32), number)
        task = world.pick(rng, elements.TASKS)
        truth = elements.Elements(self.world, task, self.seed, self.length).truth(number)
        return {"pixels": drawing.draw_one(truth, task, self.world.image_size, rng)}
