"""Short clips: scenes whose objects move at constant velocity, with captions that say how.

Each object stands still or moves left, right, up or down, slowly or quickly. A speed is a distance per clip, whatever
its number of frames; in every frame the objects stay inside the picture and apart from each other. `track` and
`read_motion` recover the motions from parsed frames.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import numpy as np
from jaxtyping import UInt8

from data_pipelines.scenes import outlines, render, source, world
from data_pipelines.scenes.world import Object, Scene, World
from nova_jax.evaluation import geneval
from nova_jax.evaluation.geneval import Detected

MAX_LENGTH = 96  # of a clip's caption
SPEEDS = {"slow": (0.12, 0.17), "fast": (0.27, 0.34)}  # of the picture's side, over the clip
STILL, FAST = 0.06, 0.22  # what is shorter counts as standing still, what is longer as moving quickly

_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_WAYS = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
_ADVERBS = {"slow": " slowly", "fast": " quickly"}


class Motion(NamedTuple):
    """Where one object goes in the course of the clip; direction and speed are None when it stands still."""

    direction: str | None = None
    speed: str | None = None
    dx: float = 0.0
    dy: float = 0.0


class Clip(NamedTuple):
    """The first frame, the motions of its objects in the same order, and the number of frames."""

    first: Scene
    motions: tuple[Motion, ...]
    frames: int


class Track(NamedTuple):
    """One object followed through a clip: the frames that show it, and where it is in each."""

    shape: str
    color: str
    frames: list[int]
    x: list[float]
    y: list[float]


def scene_at(clip: Clip, frame: int) -> Scene:
    """The ground truth of one frame."""
    share = frame / max(clip.frames - 1, 1)
    moves = zip(clip.first.objects, clip.motions, strict=True)
    return clip.first._replace(objects=tuple(o._replace(x=o.x + share * m.dx, y=o.y + share * m.dy) for o, m in moves))


def render_clip(clip: Clip, image_size: int) -> UInt8[np.ndarray, "f h w 3"]:
    """All frames."""
    return np.stack([render.render(scene_at(clip, k), image_size) for k in range(clip.frames)])


def sample_clip(of: World, frames: int, rng: np.random.Generator) -> Clip:
    """A clip of one or two objects of the training pairs, one in five of them standing still."""
    while True:
        cast = [world.pick(rng, of.seen) for _ in range(1 if of.max_objects == 1 or rng.random() < 0.6 else 2)]
        motions = tuple(_sample_motion(rng) for _ in cast)
        for _ in range(20):
            objects = tuple(_place(of, rng, pair, motion) for pair, motion in zip(cast, motions, strict=True))
            clip = Clip(Scene(objects, world.pick(rng, of.backgrounds)), motions, frames)
            if all(of.fits(scene_at(clip, k).objects) for k in range(frames)):
                return clip


def _sample_motion(rng: np.random.Generator) -> Motion:
    if rng.random() < 0.2:
        return Motion()
    direction, speed = world.pick(rng, list(_DIRECTIONS)), world.pick(rng, list(SPEEDS))
    x, y = _DIRECTIONS[direction]
    way = world.between(rng, *SPEEDS[speed])
    return Motion(direction, speed, x * way, y * way)


def _place(of: World, rng: np.random.Generator, pair: tuple[str, str], motion: Motion) -> Object:
    """Somewhere from where the motion stays inside the picture."""
    size = world.pick(rng, ("small", "large"))
    radius = world.between(rng, *world.radius_range(size, 2))
    turn = world.pick(rng, range(-of.max_rotation, of.max_rotation + 1))
    left, top, right, bottom = (radius * side for side in outlines.extent(pair[0], turn))
    x = world.between(rng, of.border - left - min(motion.dx, 0), 1 - of.border - right - max(motion.dx, 0))
    y = world.between(rng, of.border - top - min(motion.dy, 0), 1 - of.border - bottom - max(motion.dy, 0))
    return Object(*pair, size, x, y, radius, turn)


def caption(clip: Clip, rng: np.random.Generator) -> str:
    """One of the clip's captions: true, and naming every object and its motion."""
    color, speed = rng.random() < 0.8, rng.random() < 0.5
    size = len(clip.motions) == 1 and rng.random() < 0.3
    parts = []
    for o, motion in zip(clip.first.objects, clip.motions, strict=True):
        name = geneval.phrase(o.shape, o.color if color else None, o.size if size else None)
        if motion.direction is None or motion.speed is None:
            parts.append(f"{name} standing still")
        else:
            adverb = _ADVERBS[motion.speed] if speed else ""
            parts.append(f"{name} moving{adverb} {world.pick(rng, _WAYS[motion.direction])}")
    return " and ".join(parts)


@dataclasses.dataclass(frozen=True)
class Clips:
    """Captioned clips of a world: element i depends on (seed, i) alone.

    Attributes:
        world: Vocabulary and prior.
        seed: Different seeds give unrelated clips.
        length: How many elements `len` reports.
        frames: Frames per clip; causal video autoencoders want 4 k + 1.
    """

    world: World = world.QUICKSTART
    seed: int = 0
    length: int = 1_000_000
    frames: int = 9

    def __len__(self) -> int:
        return self.length

    def clip(self, index: SupportsIndex) -> Clip:
        """The ground truth of element `index`."""
        return sample_clip(self.world, self.frames, source.make_rng(self.seed, source.check_index(index, self.length)))

    def __getitem__(self, index: SupportsIndex) -> source.Captioned:
        rng = source.make_rng(self.seed, source.check_index(index, self.length))
        clip = sample_clip(self.world, self.frames, rng)
        return {"pixels": render_clip(clip, self.world.image_size), "caption": caption(clip, rng)}


def track(detections: Sequence[Sequence[Detected]], max_step: float = 0.25) -> list[Track]:
    """Follow the objects of the first frame: in each next frame to the nearest one of the same shape and colour.

    Args:
        detections: The parsed objects of every frame.
        max_step: The farthest an object is looked for from where it was last seen, as a share of the picture's side.
    """
    tracks = [Track(d.shape, d.color, [0], [d.x], [d.y]) for d in detections[0]]
    for k, found in enumerate(detections[1:], start=1):
        free = list(found)
        for t in tracks:
            near = [(math.hypot(d.x - t.x[-1], d.y - t.y[-1]), i) for i, d in enumerate(free) if d[:2] == t[:2]]
            step, i = min(near, default=(math.inf, 0))
            if step <= max_step:
                d = free.pop(i)
                t.frames.append(k)
                t.x.append(d.x)
                t.y.append(d.y)
    return tracks


def read_motion(followed: Track, frames: int) -> Motion:
    """The motion of a track over a clip of `frames` frames: a straight line fitted to it, put into words."""
    if len(followed.frames) < 2:
        return Motion()
    dx, dy = (float(np.polyfit(followed.frames, way, 1)[0]) * (frames - 1) for way in (followed.x, followed.y))
    length = math.hypot(dx, dy)
    if length < STILL:
        return Motion(None, None, dx, dy)
    horizontal = ("right" if dx > 0 else "left") if abs(dx) >= abs(dy) else None
    direction = horizontal or ("down" if dy > 0 else "up")
    return Motion(direction, "fast" if length >= FAST else "slow", dx, dy)
