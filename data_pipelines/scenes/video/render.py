"""Images of shots: a backdrop of faint marks and the actors in front of it, far ones first.

The marks are discs, darker than the background (brighter on black) by `STRENGTHS` levels, on a jittered grid that
reaches beyond the image on every side, so that a moving camera uncovers new ones.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, UInt8

from data_pipelines.scenes import palette, render
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.world import BACKDROP, Shot

MARK_RADII = (0.035, 0.055)  # heights of the image
STRENGTHS = (28.0, 38.0)  # levels of 255
_CELL, _JITTER = 0.32, 0.55  # distance of the marks, and the share of it by which a mark may be off
_BEYOND = 0.6  # how far outside the first frame there are marks


@functools.lru_cache(maxsize=64)
def marks(backdrop: int, aspect: float) -> Float[np.ndarray, "n 4"]:
    """The marks around a first frame: x, y, radius (heights of the image) and strength (levels)."""
    rng = np.random.Generator(np.random.Philox(key=backdrop))
    columns, rows = (math.ceil((length + 2 * _BEYOND) / _CELL) for length in (aspect, 1.0))
    x, y = np.meshgrid(np.arange(columns) + 0.5, np.arange(rows) + 0.5)
    places = np.stack([x.ravel(), y.ravel()], axis=1) + _JITTER * (rng.random((columns * rows, 2)) - 0.5)
    radii, strengths = rng.uniform(*MARK_RADII, len(places)), rng.uniform(*STRENGTHS, len(places))
    return np.column_stack([places * _CELL - _BEYOND, radii, strengths])


def render_shot(shot: Shot, size: tuple[int, int]) -> UInt8[np.ndarray, "f h w 3"]:
    """All frames of a shot as images of (height, width) pixels."""
    return render_frames(shot, range(shot.frames), size)


def render_frames(shot: Shot, frames: Sequence[int], size: tuple[int, int]) -> UInt8[np.ndarray, "f h w 3"]:
    """Some frames of a shot."""
    ground = np.array(palette.rgb(shot.background), np.float32)
    sign = 1 if ground.mean() < 64 else -1
    images = ground + sign * shade(shot, frames, size)[..., None]
    far_first = sorted(range(len(shot.actors)), key=lambda i: -shot.actors[i].depth)
    for image, frame in zip(images, frames, strict=True):
        objects = video_world.objects_at(shot, frame)
        render.paint(image, [objects[i] for i in far_first])
    return np.rint(images).astype(np.uint8)


def shade(shot: Shot, frames: Sequence[int], size: tuple[int, int]) -> Float32[np.ndarray, "f h w"]:
    """How many levels the marks take off (or add to) the background."""
    height, width = size
    if shot.camera.motion == "static" and len(frames) > 1:
        return np.repeat(shade(shot, frames[:1], size), len(frames), axis=0)
    x, y, radius, strength = marks(shot.backdrop, shot.aspect).T
    places = np.empty((len(frames), len(x), 3), np.float32)  # x, y, radius in pixels
    for k, frame in enumerate(frames):
        by = video_world.view(shot.camera, BACKDROP, frame / max(shot.frames - 1, 1))
        turn = math.radians(by.degrees)
        cos, sin = math.cos(turn) * by.scale, math.sin(turn) * by.scale
        across, down = x - shot.aspect / 2, y - 0.5
        places[k, :, 0] = shot.aspect / 2 + across * cos - down * sin + by.dx
        places[k, :, 1] = 0.5 + across * sin + down * cos + by.dy
        places[k, :, 2] = radius * by.scale
    places *= height
    reach = places[..., 2] + 1
    inside = (np.abs(places[..., 0] - width / 2) < width / 2 + reach) & (
        np.abs(places[..., 1] - height / 2) < height / 2 + reach
    )
    frame_of, mark_of = np.nonzero(inside)
    return _discs(places[inside], frame_of, strength[mark_of], (len(frames), height, width))


def _discs(
    places: Float32[np.ndarray, "n 3"], frame_of: np.ndarray, strength: np.ndarray, shape: tuple[int, int, int]
) -> Float32[np.ndarray, "f h w"]:
    """Discs (x, y, radius in pixels) drawn into their frames; they do not overlap."""
    frames, height, width = shape
    half = math.ceil(float(places[:, 2].max(initial=0)) + 0.5)
    window = np.arange(-half, half + 1)
    corner = np.floor(places[:, :2]).astype(np.int32)
    columns, rows = corner[:, 0, None] + window, corner[:, 1, None] + window  # (n, k)
    across, down = columns + 0.5 - places[:, 0, None], rows + 0.5 - places[:, 1, None]
    distance = np.sqrt(across[:, None, :] ** 2 + down[:, :, None] ** 2) - places[:, 2, None, None]
    levels = np.clip(0.5 - distance, 0.0, 1.0) * strength[:, None, None]
    # One pixel of border on every side takes what lies outside.
    columns, rows = np.clip(columns, -1, width) + 1, np.clip(rows, -1, height) + 1
    at = (frame_of[:, None, None] * (height + 2) + rows[:, :, None]) * (width + 2) + columns[:, None, :]
    out = np.bincount(at.ravel(), levels.ravel(), frames * (height + 2) * (width + 2))
    return out.reshape(frames, height + 2, width + 2)[:, 1:-1, 1:-1].astype(np.float32)
