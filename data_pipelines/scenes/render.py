"""Images of scenes, and everything that is exactly known about them.

An object covers a pixel by clip(1/2 - d, 0, 1), where d is the signed distance of the pixel's centre to the outline in
pixels; the image blends the object's colour over the background by that. Objects do not overlap, so order is free.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8

from data_pipelines.scenes import outlines, palette
from data_pipelines.scenes.world import Object, Scene


class Swatch(NamedTuple):
    """A colour of an image and the share of its area."""

    name: str
    rgb: tuple[int, int, int]
    fraction: float


def distance(o: Object, image_size: int) -> Float[np.ndarray, "h w"]:
    """Signed distance of every pixel centre to the object's outline, in pixels; negative inside."""
    return _distance(o, image_size, 0, 0, image_size, image_size)


def alpha(o: Object, image_size: int) -> Float[np.ndarray, "h w"]:
    """The object's coverage of every pixel, 0..1."""
    return np.clip(0.5 - distance(o, image_size), 0.0, 1.0)


def masks(scene: Scene, image_size: int) -> Bool[np.ndarray, "n h w"]:
    """One mask per object: the pixels whose centre it covers."""
    out = np.zeros((len(scene.objects), image_size, image_size), bool)
    for i, o in enumerate(scene.objects):
        out[i] = distance(o, image_size) < 0
    return out


def segmentation(scene: Scene, image_size: int) -> Int[np.ndarray, "h w"]:
    """Label map: 0 is the background, i + 1 is object i."""
    out = np.zeros((image_size, image_size), np.int32)
    for i, mask in enumerate(masks(scene, image_size)):
        out[mask] = i + 1
    return out


def edges(scene: Scene, image_size: int) -> Bool[np.ndarray, "h w"]:
    """The pixels an outline passes within half a pixel of."""
    out = np.zeros((image_size, image_size), bool)
    for o in scene.objects:
        out |= np.abs(distance(o, image_size)) <= 0.5
    return out


def swatches(scene: Scene, image_size: int) -> list[Swatch]:
    """The image's colours with their area, largest first; blended pixels count in proportion."""
    fractions = {scene.background: 1.0}
    for o in scene.objects:
        share = float(alpha(o, image_size).mean())
        fractions[o.color] = fractions.get(o.color, 0.0) + share
        fractions[scene.background] -= share
    found = [Swatch(name, palette.rgb(name), share) for name, share in fractions.items()]
    return sorted(found, key=lambda swatch: -swatch.fraction)


def render(scene: Scene, image_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image."""
    ground = np.empty((image_size, image_size, 3), np.uint8)
    ground[:] = palette.rgb(scene.background)
    return over(ground, scene.objects)


def over(ground: UInt8[np.ndarray, "h w 3"], objects: Sequence[Object]) -> UInt8[np.ndarray, "h w 3"]:
    """The objects painted over any image; lengths are in units of its height."""
    image = ground.astype(np.float32)
    paint(image, objects)
    return np.rint(image).astype(np.uint8)


def paint(image: Float32[np.ndarray, "h w 3"], objects: Sequence[Object]) -> None:
    """Blend the objects into the image, one after the other, touching only their bounding boxes."""
    for o in objects:
        window, inner = _coverage(o.shape, o.x, o.y, o.radius, o.rotation, image.shape[:2])
        part = image[window]
        part += inner * (np.array(palette.rgb(o.color), np.float32) - part)


def cutout(scene: Scene, image_size: int, index: int) -> UInt8[np.ndarray, "h w 4"]:
    """One object alone on nothing: its colour with its coverage as the alpha channel."""
    o = scene.objects[index]
    out = np.empty((image_size, image_size, 4), np.uint8)
    out[..., :3] = palette.rgb(o.color)
    out[..., 3] = np.rint(255 * alpha(o, image_size))
    return out


def coverage(objects: Sequence[Object], image_size: int) -> Float32[np.ndarray, "h w"]:
    """How much of every pixel the objects cover, 0..1; painting them leaves the pixels at 0 as they are."""
    out = np.zeros((image_size, image_size), np.float32)
    for o in objects:
        window, inner = _coverage(o.shape, o.x, o.y, o.radius, o.rotation, out.shape)
        np.maximum(out[window], inner[..., 0], out=out[window])
    return out


@functools.lru_cache(maxsize=256)
def _coverage(
    shape: str, x: float, y: float, radius: float, rotation: int, size: tuple[int, ...]
) -> tuple[tuple[slice, slice], Float32[np.ndarray, "h w 1"]]:
    """An object's bounding box in pixels and its coverage there; remembered, for the images of an edit share it."""
    o = Object(shape, "", "", x, y, radius, rotation)
    height, width = size
    left, top, right, bottom = (side * height for side in o.box)
    x0, y0 = max(math.floor(left) - 1, 0), max(math.floor(top) - 1, 0)
    x1, y1 = max(min(math.ceil(right) + 1, width), x0), max(min(math.ceil(bottom) + 1, height), y0)
    inner = np.minimum(np.maximum(0.5 - _distance(o, height, x0, y0, x1, y1), 0.0), 1.0)
    return (slice(y0, y1), slice(x0, x1)), inner[..., None].astype(np.float32)


def _distance(o: Object, size: int, x0: int, y0: int, x1: int, y1: int) -> Float[np.ndarray, "h w"]:
    """Signed distance over a window of pixels."""
    turn = math.radians(o.rotation)
    cos, sin = math.cos(turn) / o.radius, math.sin(turn) / o.radius
    x = (np.arange(x0, x1) + 0.5) / size - o.x
    y = ((np.arange(y0, y1) + 0.5) / size - o.y)[:, None]
    return outlines.SHAPES[o.shape](x * cos + y * sin, y * cos - x * sin) * (o.radius * size)
