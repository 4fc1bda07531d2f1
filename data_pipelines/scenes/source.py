"""Scenes as a random-access source: element i depends on (seed, i) alone."""

import dataclasses
from typing import SupportsIndex, TypedDict

import numpy as np
from jaxtyping import UInt8

from data_pipelines.scenes import captions, randomness, render, world
from data_pipelines.scenes.exams import geneval_scores
from data_pipelines.scenes.world import Scene, World
from data_pipelines.sources import base


class Captioned(TypedDict):
    """One element: an image (one frame) or a clip, and what it shows."""

    pixels: UInt8[np.ndarray, "f h w 3"]
    caption: str


@dataclasses.dataclass(frozen=True)
class Scenes(base.Examinable):
    """Captioned images of a world. Picklable; no state.

    Attributes:
        world: Vocabulary and prior.
        seed: Different seeds give unrelated scenes; use another one for held-out data.
        length: How many elements `len` reports.
        held_out: Draw only the world's held-out (shape, color) pairs instead of the training ones.
    """

    world: World = world.QUICKSTART
    seed: int = 0
    length: int = 1_000_000
    held_out: bool = False

    def __len__(self) -> int:
        return self.length

    def scene(self, index: SupportsIndex) -> Scene:
        """The ground truth of element `index`."""
        return self._sample(randomness.make_rng(self.seed, randomness.check_index(index, self.length)))

    def __getitem__(self, index: SupportsIndex) -> Captioned:
        rng = randomness.make_rng(self.seed, randomness.check_index(index, self.length))
        scene = self._sample(rng)
        pixels = render.render(scene, self.world.image_size)[None]
        return {"pixels": pixels, "caption": captions.caption(scene, rng, self.world.wording)}

    def scorer(self, per_task: int) -> geneval_scores.Scorer:
        """What scores images of such scenes on GenEval's six tasks."""
        return geneval_scores.Scorer(self.world, per_task)

    def read_back(self, images: UInt8[np.ndarray, "n f h w 3"]) -> geneval_scores.Ceiling:
        """How many images of the first elements the parser reads back right."""
        return geneval_scores.read_back(images, [self.scene(index) for index in range(len(images))], self.world)

    def _sample(self, rng: np.random.Generator) -> Scene:
        return (world.sample_held_out if self.held_out else world.sample_scene)(self.world, rng)
