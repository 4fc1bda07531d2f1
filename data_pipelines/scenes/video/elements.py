"""Moving scenes as a random-access source: element i depends on (seed, task, i) alone.

task     an element
video    a shot and its caption
image    one frame of actors standing still and its caption, which says nothing of motion
film     a later shot of a film; its caption, which may call the actors by their shapes alone; a frame of every
         earlier shot as references
"""

import dataclasses
from typing import NamedTuple, NotRequired, SupportsIndex, TypedDict

import numpy as np
from jaxtyping import UInt8

from data_pipelines.scenes import captions, randomness
from data_pipelines.scenes.video import captions as video_captions
from data_pipelines.scenes.video import render as video_render
from data_pipelines.scenes.video import sampling as video_sampling
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.world import Film, ReelWorld, Shot
from data_pipelines.scenes.world import Pairs, Scene

TASKS = ("video", "image", "film")  # a task's place enters the random numbers of its elements
MAX_REFERENCES = 3  # a film has four shots at most
_GRAY = 128  # of references that are not there


class ReelElement(TypedDict):
    """One element; `references` and `num_references` belong to film."""

    pixels: UInt8[np.ndarray, "f h w 3"]
    caption: str
    references: NotRequired[UInt8[np.ndarray, "3 h w 3"]]
    num_references: NotRequired[np.int32]


class Taken(NamedTuple):
    """A film, the number of the shot to draw, and the frame that each earlier shot shows as a reference."""

    film: Film
    target: int
    frames: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Elements:
    """Elements of one task. Picklable; no state.

    Every element has `pixels` uint8 (f, h, w, 3) and `caption`; film also `references` uint8 (3, h, w, 3), gray from
    `num_references` on.

    Attributes:
        world: Vocabulary and prior.
        task: One of `TASKS`.
        seed: 0 to 2^32 - 1; different seeds give unrelated elements.
        length: How many elements `len` reports.
        held_out: Draw only the world's held-out (shape, color) pairs instead of the training ones.
    """

    world: ReelWorld = video_world.REEL_36
    task: str = "video"
    seed: int = 0
    length: int = 1_000_000
    held_out: bool = False

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}; give one of {', '.join(TASKS)}.")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed is {self.seed}; give 0 to 2^32 - 1.")
        if self.held_out and not self.world.held_out:
            raise ValueError("This world holds nothing out; set ReelWorld.held_out to (shape, color) pairs.")

    def __len__(self) -> int:
        return self.length

    def shot(self, index: SupportsIndex) -> Shot:
        """The ground truth of what element `index` shows."""
        return self._sample(self._rng(index))[0]

    def film(self, index: SupportsIndex) -> Film:
        """The film that element `index` of the task film is taken from."""
        return self.taken(index).film

    def taken(self, index: SupportsIndex) -> Taken:
        """What of its film element `index` of the task film draws and gives.

        Raises:
            ValueError: The task is another one.
        """
        if self.task != "film":
            raise ValueError(f"the elements of {self.task} belong to no film; give task='film'.")
        return self._sample_film(self._rng(index))

    def __getitem__(self, index: SupportsIndex) -> ReelElement:
        rng, size = self._rng(index), (self.world.height, self.world.width)
        shot, taken = self._sample(rng)
        pixels = video_render.render_shot(shot, size)
        if self.task == "image":
            objects = video_world.objects_at(shot, 0)
            return {"pixels": pixels, "caption": captions.caption(Scene(objects, shot.background), rng)}
        if taken is None:
            return {"pixels": pixels, "caption": video_captions.caption(shot, rng)}
        references = np.full((MAX_REFERENCES, *size, 3), _GRAY, np.uint8)
        for i, frame in enumerate(taken.frames):
            references[i] = video_render.render_frames(taken.film.shots[i], [frame], size)[0]
        caption = video_captions.later_caption(shot, rng)
        count = np.int32(len(taken.frames))
        return {"pixels": pixels, "caption": caption, "references": references, "num_references": count}

    @property
    def _pairs(self) -> Pairs:
        return self.world.held_out if self.held_out else self.world.seen

    def _rng(self, index: SupportsIndex) -> np.random.Generator:
        stream = self.seed | ((TASKS.index(self.task) + 1) << 32)
        return randomness.make_rng(stream, randomness.check_index(index, self.length))

    def _sample(self, rng: np.random.Generator) -> tuple[Shot, Taken | None]:
        if self.task == "film":
            taken = self._sample_film(rng)
            return taken.film.shots[taken.target], taken
        sample = video_sampling.sample_still if self.task == "image" else video_sampling.sample_shot
        return sample(self.world, rng, self._pairs), None

    def _sample_film(self, rng: np.random.Generator) -> Taken:
        film = video_sampling.sample_film(self.world, rng, self._pairs)
        target = 1 + int(rng.random() * (len(film.shots) - 1))
        frames = tuple(int(rng.random() * shot.frames) for shot in film.shots[:target])
        return Taken(film, target, frames)
