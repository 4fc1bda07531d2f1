"""Reads clips of moving scenes back: who is in every frame, how each moves, what the camera does, and where cuts are.

frames    every frame is parsed (`parser`)
tracks    each object of a frame continues the nearest track of the last frame, or begins one
drift     how the marks of the backdrop move (`camera_motion`), with all that is not backdrop left out
camera    what moves the backdrop most, set against the least that a world's camera does. Backdrops cannot tell a
          camera that turns from one that travels: actors nearer than the backdrop can, as they move more (truck,
          pedestal) or grow more (dolly) than it does
motion    the path of a track in its own layer, the camera's motion taken back: one or two straight lines, where
          two meet at an impact; direction and speed are those of the first
cuts      frames that differ from the one before by far more than any of their neighbours do
"""

import collections
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from data_pipelines.scenes import palette, parser
from data_pipelines.scenes.video import camera_motion
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.camera_motion import Drift
from data_pipelines.scenes.video.world import AMOUNTS, BACKDROP, CAMERA_MOTIONS, FAST, STILL, Camera, ReelWorld, View
from nova_jax.evaluation.geneval import Detected

MAX_STEP = 0.2  # heights; the farthest an object is looked for from where it was last seen
MAX_GAP = 4  # frames for which a track may be lost
OTHER_NAME = 0.1  # heights that a change of shape or colour counts for in looking for the nearest
PARALLAX = 0.57  # of the backdrop's motion: half of the least that the farthest actor moves beyond it
MOVED = 0.5  # of the least that a family does, below which the camera is static
ACTOR = 22.0  # Lab; pixels so far from the ground are no backdrop
KNEE = 4.0  # times less squared error, from which a knee of a path is real
LEAST_BEND = 0.004  # heights; root mean square distance to one line below which a path is straight
CUT = 3.0  # times the largest change between frames around
LEAST_CUT = 2.0  # levels of 255
AROUND = 5  # frames on either side: an autoencoder of clips changes a little at every fourth
# The least that a camera does to the backdrop: pedestals, trucks and dollies move it less than their counterparts.
LEAST = {
    "x": AMOUNTS["truck"][0] / BACKDROP,
    "y": AMOUNTS["pedestal"][0] / BACKDROP,
    "growth": math.log(1 + AMOUNTS["dolly"][0] / BACKDROP),
    "turn": AMOUNTS["roll"][0],
}

Name = tuple[str, str]  # shape and colour
Velocity = tuple[float, float]  # heights per second to the right and down


class Track(NamedTuple):
    """One object followed through a clip: in which frames it is seen, how, and how large (area, heights squared)."""

    frames: list[int]
    seen: list[Detected]
    areas: list[float]

    @property
    def name(self) -> Name:
        """The shape and the colour that it mostly has."""
        return collections.Counter(d[:2] for d in self.seen).most_common(1)[0][0]


class Reading(NamedTuple):
    """A clip read: the objects of every frame, their tracks, and the motion of the backdrop where it shows one."""

    objects: list[list[Detected]]
    tracks: list[Track]
    drift: Drift | None


class Motion(NamedTuple):
    """How an actor moves by itself: in words and in heights per second, until an impact and after it."""

    direction: str | None
    speed: str | None
    before: Velocity
    after: Velocity
    impact: float | None  # in seconds


def read(pixels: UInt8[np.ndarray, "f h w 3"], world: ReelWorld) -> Reading:
    """Reads a clip without a cut."""
    objects = [parser.parse(frame, world) for frame in pixels]
    return Reading(objects, track(objects, pixels), camera_motion.fit(pixels, _covered(pixels)))


def track(objects: Sequence[Sequence[Detected]], pixels: UInt8[np.ndarray, "f h w 3"]) -> list[Track]:
    """Follows objects from frame to frame, each to the nearest; one that no track leads to begins a new one."""
    tracks: list[Track] = []
    for k, found in enumerate(objects):
        ground = np.median(pixels[k].reshape(-1, 3), axis=0)
        alive = [t for t in tracks if k - t.frames[-1] <= MAX_GAP]
        pairs = sorted((_distance(t.seen[-1], d), i, j) for i, t in enumerate(alive) for j, d in enumerate(found))
        used: set[int] = set()
        led: set[int] = set()
        for distance, i, j in pairs:
            if distance <= MAX_STEP and i not in used and j not in led:
                used.add(i)
                led.add(j)
                _extend(alive[i], k, found[j], pixels[k], ground)
        for j in set(range(len(found))) - led:
            tracks.append(Track([], [], []))
            _extend(tracks[-1], k, found[j], pixels[k], ground)
    return tracks


def camera(reading: Reading) -> Camera | None:
    """What the camera does and how far, as `video_world.Camera`; None where the backdrop shows nothing."""
    drift = reading.drift
    if drift is None:
        return None
    strength = {name: abs(getattr(drift, name)) / least for name, least in LEAST.items()}
    axis = max(strength, key=lambda name: strength[name])
    if strength[axis] < MOVED:
        return Camera()
    moved: float = getattr(drift, axis)
    if axis == "turn":
        return Camera("roll counterclockwise" if moved > 0 else "roll clockwise", abs(moved))
    travels = _parallax(reading, axis) > PARALLAX
    if axis == "growth":
        way = "in" if moved > 0 else "out"
        if travels:
            return Camera(f"dolly {way}", BACKDROP * abs(1 - math.exp(-moved)))
        return Camera(f"zoom {way}", math.exp(abs(moved)))
    ways = {"x": ("right", "left"), "y": ("down", "up")}[axis]
    family = {"x": ("pan", "truck"), "y": ("tilt", "pedestal")}[axis][travels]
    return Camera(f"{family} {ways[moved > 0]}", abs(moved) * (BACKDROP if travels else 1))


def motion(followed: Track, by: Camera, world: ReelWorld) -> Motion:
    """How an actor moves by itself; across a camera that travels sideways, up or down, as the world's actors do.

    Args:
        followed: Its track.
        by: What the camera does.
        world: Its aspect, and how many frames a clip has, at how many a second.
    """
    path = _layer_path(followed, by, world)
    before, after, impact = _two_lines(np.array(followed.frames) / world.fps, path)
    length = math.hypot(*before)
    if length < STILL:
        return Motion(None, None, before, after, impact)
    dx, dy = before
    horizontal = ("right" if dx > 0 else "left") if abs(dx) >= abs(dy) else None
    direction = horizontal or ("down" if dy > 0 else "up")
    return Motion(direction, "fast" if length >= FAST else "slow", before, after, impact)


def cuts(pixels: UInt8[np.ndarray, "f h w 3"]) -> list[int]:
    """The numbers of the frames that follow a cut."""
    levels = ndimage.gaussian_filter(pixels.astype(np.float64), (0, 1, 1, 0))
    change = np.abs(np.diff(levels, axis=0)).mean(axis=(1, 2, 3))
    found = []
    for k, value in enumerate(change):
        around = np.concatenate([change[max(k - AROUND, 0) : k], change[k + 1 : k + 1 + AROUND]])
        if value > max(CUT * around.max(initial=0.0), LEAST_CUT):
            found.append(k + 1)
    return found


def cut_f1(found: Iterable[int], true: Iterable[int]) -> float:
    """F1 of cuts at exactly the right frames; where there are none and none are found, 1."""
    found, true = set(found), set(true)
    return 2 * len(found & true) / (len(found) + len(true)) if found or true else 1.0


def _covered(pixels: UInt8[np.ndarray, "f h w 3"]) -> Bool[np.ndarray, "f h w"]:
    """What is no backdrop: pixels unlike their frame's ground, and two pixels around them."""
    smooth = ndimage.gaussian_filter(pixels.astype(np.float32), (0, 0.8, 0.8, 0))
    ground = np.median(smooth, axis=(1, 2), keepdims=True)
    unlike = np.linalg.norm(palette.to_lab(smooth) - palette.to_lab(ground), axis=-1) > ACTOR
    return ndimage.maximum_filter(unlike, (1, 5, 5), mode="constant")


def _distance(a: Detected, b: Detected) -> float:
    return math.hypot(a.x - b.x, a.y - b.y) + OTHER_NAME * (a[:2] != b[:2])


def _extend(of: Track, k: int, d: Detected, frame: UInt8[np.ndarray, "h w 3"], ground: Float[np.ndarray, " 3"]) -> None:
    of.frames.append(k)
    of.seen.append(d)
    of.areas.append(_area(frame, d, ground))


def _area(frame: UInt8[np.ndarray, "h w 3"], d: Detected, ground: Float[np.ndarray, " 3"]) -> float:
    """How much of the image the object covers: pixels in its box by how far they are from ground to its colour."""
    height = frame.shape[0]
    reach_x, reach_y = 0.7 * d.width + 1 / height, 0.7 * d.height + 1 / height
    left, right, top, bottom = (
        max(round(side * height), 0) for side in (d.x - reach_x, d.x + reach_x, d.y - reach_y, d.y + reach_y)
    )
    axis = np.array(palette.rgb(d.color)) - ground
    share = (frame[top:bottom, left:right] - ground) @ axis / max(float(axis @ axis), 1.0)
    return float(np.clip(share, 0, 1).sum()) / height**2


def _parallax(reading: Reading, axis: str) -> float:
    """The motion of the actors beyond the backdrop's, in terms of that: 0 when all layers move alike."""
    drift, frames = reading.drift, len(reading.objects)
    assert drift is not None
    moved: float = getattr(drift, axis)
    long = [t for t in reading.tracks if len(t.frames) > frames / 2]
    ways = [_growth(t, frames) if axis == "growth" else _way(t, axis, frames) for t in long]
    return float(np.median(ways)) / moved - 1 if ways else 0.0


def _growth(followed: Track, frames: int) -> float:
    """The logarithm of how much larger the object grows in the course of a clip."""
    return _slope(followed.frames, np.log(followed.areas)) / 2 * (frames - 1)


def _way(followed: Track, axis: str, frames: int) -> float:
    """How far the object gets along an axis in the course of a clip."""
    places = np.array([getattr(d, axis) for d in followed.seen])
    return _slope(followed.frames, places) * (frames - 1)


def _slope(x: Sequence[int], y: Float[np.ndarray, " n"]) -> float:
    """The median of the slopes between all pairs of points (Theil 1950, Sen 1968)."""
    i, j = np.triu_indices(len(x), 1)
    return float(np.median((y[j] - y[i]) / (np.array(x)[j] - np.array(x)[i]))) if len(x) > 1 else 0.0


def _layer_path(followed: Track, by: Camera, world: ReelWorld) -> Float[np.ndarray, "n 2"]:
    """Where the actor is in its layer as the first frame shows it."""
    family, last = CAMERA_MOTIONS[by.motion], max(world.frames - 1, 1)
    depth = 1.0
    if family == "dolly":
        depth = by.amount / max(abs(1 - math.exp(-_growth(followed, world.frames))), 1e-6)
        depth = min(max(depth, video_world.DEPTHS[0]), video_world.DEPTHS[1])
    views = [video_world.view(by, depth, k / last) for k in followed.frames]
    path = np.array([_taken_back(d, seen_by, world.aspect) for d, seen_by in zip(followed.seen, views, strict=True)])
    if family in ("truck", "pedestal"):
        axis = ("truck", "pedestal").index(family)
        path[:, axis] = path[0, axis]
    return path


def _taken_back(d: Detected, by: View, aspect: float) -> Velocity:
    """The place that the view shows where the object is: the inverse of `video_world.seen`."""
    turn = math.radians(by.degrees)
    x, y = d.x - by.dx - aspect / 2, d.y - by.dy - 0.5
    cos, sin = math.cos(turn) / by.scale, math.sin(turn) / by.scale
    return aspect / 2 + x * cos + y * sin, 0.5 - x * sin + y * cos


def _two_lines(
    seconds: Float[np.ndarray, " n"], path: Float[np.ndarray, "n 2"]
) -> tuple[Velocity, Velocity, float | None]:
    """The velocity, or those before and after a knee and the knee's time where a knee explains the path far better."""
    if len(seconds) < 2:
        return (0.0, 0.0), (0.0, 0.0), None
    slope, error = _fit_lines(seconds, path, None)
    plain = (float(slope[0, 0]), float(slope[0, 1]))
    fits = [(*_fit_lines(seconds, path, knee), float(knee)) for knee in seconds[3:-3]]
    if not fits:
        return plain, plain, None
    slopes, bent, knee = min(fits, key=lambda found: found[1])
    if bent > error / KNEE or error < LEAST_BEND**2 * len(seconds):
        return plain, plain, None
    (x, y), (more_x, more_y) = slopes.tolist()
    return (x, y), (x + more_x, y + more_y), knee


def _fit_lines(
    seconds: Float[np.ndarray, " n"], path: Float[np.ndarray, "n 2"], knee: float | None
) -> tuple[Float[np.ndarray, "k 2"], float]:
    """Least squares of a line, or of two that meet at the knee: the slopes, and the squared error."""
    columns = [np.ones_like(seconds), seconds]
    if knee is not None:
        columns.append(np.maximum(seconds - knee, 0))
    basis = np.stack(columns, axis=1)
    found = np.linalg.lstsq(basis, path, rcond=None)[0]
    return found[1:], float(((basis @ found - path) ** 2).sum())
