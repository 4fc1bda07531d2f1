"""Reads an image of a scene back into objects: deterministic, and without any trained network.

    1. ground      the median colour along the border, refined over all pixels like it
    2. blobs       connected pixels past half way from the ground to their nearest object colour (Lab), no specks; where
                   several object colours fill the inside of one blob, it is cut along the nearest colours
    3. colour      the name nearest (Lab) to the median colour inside the blob
    4. coverage    pixels p projected on the line from ground g to the blob's colour o: (p - g).(o - g) / |o - g|^2
    5. shape       coverage, resampled about its centroid to unit area, against rendered templates of every shape,
                   radius, turn and some blur: the nearest by squared error; its soft overlap, sum min / sum max, is the
                   confidence
    6. radius      sqrt(total coverage / area of the shape at radius 1)

A blob that overlaps its best template badly has the shape "unknown"; one in a background's colour carries that name.

`parse_banded` reads objects of arbitrary colours on horizontal bands: the ground of a row is what it shows at its end.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Num, Shaped
from scipy import ndimage

from data_pipelines.scenes import outlines, palette, render
from data_pipelines.scenes.world import LARGE, Object, Vocabulary
from nova_jax.evaluation.geneval import Detected

UNKNOWN = "unknown"
MIN_OVERLAP = 0.7  # with the best template, below which a shape is unknown
MIN_AREA = 0.25  # of a world's smallest disc, below which a blob is a speck

_INSIDE = 0.6  # share of the way from ground to object colour at which a pixel joins a blob
_LIKE_GROUND = 20.0  # Lab; half of the least distance between an object colour and a background
_OFF_BAND = 10.0  # Lab; the same for arbitrary colours, which are 20 apart
_GRID, _REACH = 18, 1.75  # samples per side of a normalised coverage, and its half side in sqrt(area / pi)


class Templates(NamedTuple):
    """Normalised coverages of rendered shapes, one row each."""

    shapes: list[str]
    rows: Float32[np.ndarray, "n grid"]


def parse(pixels: Shaped[np.ndarray, "*frame h w 3"], world: Vocabulary) -> list[Detected]:
    """The objects of one image, largest first: x, y is the centroid, confidence the overlap with the best template.

    Args:
        pixels: uint8 (0..255) or floating point (-1..1), as large as the world's images; may have one leading frame.
        world: Whose shapes and colours to look for.
    """
    found = []
    for coverage, color in _objects(_to_levels(pixels, world), world):
        found.append(_describe(coverage, _nearest_name(color, world.colors + world.backgrounds), world))
    return sorted(found, key=lambda d: -d.width * d.height)


def parse_banded(pixels: Shaped[np.ndarray, "*frame h w 3"], world: Vocabulary) -> list[Detected]:
    """The objects of an image in any colours on a background of horizontal bands; a colour reads "#rrggbb".

    Args:
        pixels: As `parse`.
        world: Whose shapes to look for.
    """
    image = _to_levels(pixels, world)
    ground, from_ground = _row_ground(image)
    found = []
    for blob in _components(from_ground > _OFF_BAND, _least_area(world)):
        color = _fill(image, blob)
        name = "#" + np.rint(color).astype(np.uint8).tobytes().hex()
        found.append(_describe(_coverage(image, blob, ground, color), name, world))
    return sorted(found, key=lambda d: -d.width * d.height)


def foreground(pixels: Shaped[np.ndarray, "*frame h w 3"], world: Vocabulary) -> Bool[np.ndarray, "h w"]:
    """The pixels that the objects of an image cover by half or more."""
    found = [coverage >= 0.5 for coverage, _ in _objects(_to_levels(pixels, world), world)]
    return np.logical_or.reduce(found, axis=0) if found else np.zeros((world.height, world.width), bool)


def background(pixels: Shaped[np.ndarray, "*frame h w 3"], world: Vocabulary) -> str:
    """The name of the world's background that is nearest to the image's."""
    image = _to_levels(pixels, world)
    ground, _ = _ground(image, palette.to_lab(image))
    return _nearest_name(ground, world.backgrounds)


def _objects(
    image: Float[np.ndarray, "h w 3"], world: Vocabulary
) -> Iterator[tuple[Float[np.ndarray, "h w"], Float[np.ndarray, " 3"]]]:
    """Every object's coverage of the image and its colour."""
    lab = palette.to_lab(image)
    ground, from_ground = _ground(image, lab)
    nearest, between = _nearest_color(lab, ground, world)
    for blob in _blobs(from_ground > _INSIDE * between, nearest, world):
        color = _fill(image, blob)
        yield _coverage(image, blob, ground, color), color


def _to_levels(pixels: np.ndarray, world: Vocabulary) -> Float[np.ndarray, "h w 3"]:
    """The image as floating point 0..255."""
    shape = (world.height, world.width, 3)
    if pixels.shape not in (shape, (1, *shape)):
        raise ValueError(f"pixels has shape {pixels.shape}; this world's images are {shape}, one at a time.")
    image = pixels.reshape(shape).astype(np.float64)
    return image if pixels.dtype == np.uint8 else np.clip((image + 1) * 127.5, 0, 255)


def _ground(
    image: Float[np.ndarray, "h w 3"], lab: Float[np.ndarray, "h w 3"]
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, "h w"]]:
    """The background's colour (0..255), and the Lab distance of every pixel to it."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    alike = np.linalg.norm(lab - palette.to_lab(np.median(border, axis=0)), axis=-1) < _LIKE_GROUND
    ground = np.median(image[alike] if alike.any() else border, axis=0)
    return ground, np.linalg.norm(lab - palette.to_lab(ground), axis=-1)


def _row_ground(image: Float[np.ndarray, "h w 3"]) -> tuple[Float[np.ndarray, "h 1 3"], Float[np.ndarray, "h w"]]:
    """The background's colour (0..255) in every row, and the Lab distance of every pixel to it.

    It is that of the first or the last pixel, whichever is more like the row: an object may reach into the other one.
    """
    lab, ends = palette.to_lab(image), image[:, [0, -1]]
    distances = np.linalg.norm(lab[:, None] - palette.to_lab(ends)[:, :, None], axis=-1)  # row, end, column
    better = (distances < _OFF_BAND).sum(axis=-1).argmax(axis=1)
    rows = np.arange(len(image))
    return ends[rows, better][:, None], distances[rows, better]


def _nearest_color(
    lab: Float[np.ndarray, "h w 3"], ground: Float[np.ndarray, " 3"], world: Vocabulary
) -> tuple[Num[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """The index of every pixel's nearest object colour, and that colour's Lab distance to the ground."""
    table = palette.table(world.colors)
    scores = lab @ (2 * table.T) - (table**2).sum(axis=1)  # |lab|^2 - |lab - colour|^2
    nearest = scores.argmax(axis=-1)
    return nearest, np.linalg.norm(table - palette.to_lab(ground), axis=1)[nearest]


def _nearest_name(color: Float[np.ndarray, " 3"], names: tuple[str, ...]) -> str:
    return names[int(np.linalg.norm(palette.table(names) - palette.to_lab(color), axis=1).argmin())]


def _blobs(
    foreground: Bool[np.ndarray, "h w"], nearest: Num[np.ndarray, "h w"], world: Vocabulary
) -> list[Bool[np.ndarray, "h w"]]:
    """One mask per object."""
    least = _least_area(world)
    blobs = []
    for blob in _components(foreground, least):
        inside = np.bincount(nearest[_inside(blob)])
        several = np.flatnonzero(inside >= least / 2)
        if several.size < 2:
            blobs.append(blob)
        else:
            blobs += [part for color in several for part in _components(blob & (nearest == color), least)]
    return blobs


def _components(mask: Bool[np.ndarray, "h w"], least: float) -> list[Bool[np.ndarray, "h w"]]:
    labels = np.empty(mask.shape, np.int32)
    ndimage.label(mask, output=labels)
    areas = np.bincount(labels.ravel())
    return [labels == i for i in range(1, len(areas)) if areas[i] >= least]


def _least_area(world: Vocabulary) -> float:
    """The area in pixels below which a blob is a speck."""
    return MIN_AREA * math.pi * (world.min_radius * world.height) ** 2


def _fill(image: Float[np.ndarray, "h w 3"], blob: Bool[np.ndarray, "h w"]) -> Float[np.ndarray, " 3"]:
    """The blob's colour."""
    inside = _inside(blob)
    return np.median(image[inside if inside.any() else blob], axis=0)


def _coverage(
    image: Float[np.ndarray, "h w 3"],
    blob: Bool[np.ndarray, "h w"],
    ground: Float[np.ndarray, "*rows 3"],
    color: Float[np.ndarray, " 3"],
) -> Float[np.ndarray, "h w"]:
    """How far every pixel of the blob and its rim is on the way from the ground's colour to the blob's, 0..1."""
    axis = color - ground
    share = ((image - ground) * axis).sum(axis=-1) / np.maximum((axis**2).sum(axis=-1), 1.0)
    return np.clip(share, 0, 1) * _grown(blob)


def _describe(coverage: Float[np.ndarray, "h w"], color: str, world: Vocabulary) -> Detected:
    """The object that covers so much of every pixel."""
    size = world.height
    row, x, y, area = _normalize(coverage)
    bank = templates(world)
    best = int(((bank.rows - row) ** 2).sum(axis=1).argmin())
    shape = bank.shapes[best]
    overlap = float(np.minimum(bank.rows[best], row).sum() / np.maximum(bank.rows[best], row).sum())
    radius = math.sqrt(area / outlines.area(shape)) / size
    return Detected(
        shape=shape if overlap >= MIN_OVERLAP else UNKNOWN,
        color=color,
        size="large" if radius >= LARGE else "small",
        x=x / size,
        y=y / size,
        width=float(coverage.max(axis=0).sum()) / size,
        height=float(coverage.max(axis=1).sum()) / size,
        confidence=overlap,
    )


def _inside(blob: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The blob without its rim."""
    return np.asarray(ndimage.binary_erosion(blob), bool)


def _grown(blob: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The blob and its blended rim."""
    return np.asarray(ndimage.binary_dilation(blob, np.ones((3, 3), bool)), bool)


def _normalize(coverage: Float[np.ndarray, "h w"]) -> tuple[Float32[np.ndarray, " grid"], float, float, float]:
    """Coverage resampled to unit area about its centroid; the centroid x, y and the area in pixels."""
    area = float(coverage.sum())
    y, x = (float(coverage.sum(axis=1 - axis) @ np.arange(n) / area) for axis, n in enumerate(coverage.shape))
    offsets = np.linspace(-_REACH, _REACH, _GRID) * math.sqrt(area / math.pi)
    points = np.meshgrid(y + offsets, x + offsets, indexing="ij")
    row = ndimage.map_coordinates(coverage, points, order=1).ravel().astype(np.float32)
    return row, x + 0.5, y + 0.5, area


@functools.cache
def templates(world: Vocabulary) -> Templates:
    """Every shape at the world's radii and turns, sharp and blurred, off and on the pixel grid."""
    radii = np.geomspace(world.min_radius, world.max_radius, 6)
    names, rows = [], []
    for shape in world.shapes:
        turns = sorted({outlines.least_turn(shape, turn) for turn in world.turns})
        for radius, turn in itertools.product(radii, turns):
            sharp = render.alpha(Object(shape, "", "", 0.5, 0.5, float(radius), turn), world.height)
            for coverage in (sharp, ndimage.gaussian_filter(sharp, 0.7)):
                names.append(shape)
                rows.append(_normalize(coverage * _grown(coverage > _INSIDE))[0])
    return Templates(names, np.stack(rows))
