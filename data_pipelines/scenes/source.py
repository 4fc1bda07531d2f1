"""Scenes as a random-access source: element i depends on (seed, i) alone."""

import dataclasses
import operator
from typing import SupportsIndex, TypedDict

import numpy as np
from jaxtyping import UInt8

from data_pipelines.scenes import captions, render, world
from data_pipelines.scenes.world import Scene, World


class Captioned(TypedDict):
    """One element: a picture (one frame) or a clip, and what it shows."""

    pixels: UInt8[np.ndarray, "f h w 3"]
    caption: str


def make_rng(seed: int, index: int) -> np.random.Generator:
    """A generator for element `index` of stream `seed`: counter-based, so streams are independent and cheap to open.

    Raises:
        ValueError: a seed that is negative, or of more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must be a whole number from 0 to {2**64 - 1:,}")
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


def check_index(index: SupportsIndex, length: int) -> int:
    """The index as an int, or IndexError."""
    number = operator.index(index)
    if not 0 <= number < length:
        raise IndexError(f"index is {number}; this source has elements 0 to {length - 1}.")
    return number


@dataclasses.dataclass(frozen=True)
class Scenes:
    """Captioned pictures of a world. Picklable; no state.

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
        return self._sample(make_rng(self.seed, check_index(index, self.length)))

    def __getitem__(self, index: SupportsIndex) -> Captioned:
        rng = make_rng(self.seed, check_index(index, self.length))
        scene = self._sample(rng)
        pixels = render.render(scene, self.world.image_size)[None]
        return {"pixels": pixels, "caption": captions.caption(scene, rng, self.world.wording)}

    def _sample(self, rng: np.random.Generator) -> Scene:
        return (world.sample_held_out if self.held_out else world.sample_scene)(self.world, rng)
