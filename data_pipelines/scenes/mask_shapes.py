"""Masks as people draw them: the exact silhouette, a dilated one, a box, brush strokes. Each covers what it has to.

Lengths are in pixels.
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import ndimage

from data_pipelines.scenes import world

KINDS = ("exact", "dilated", "box", "brush")


def sample_mask(needed: Bool[np.ndarray, "h w"], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A mask of a random kind that covers all needed pixels, of which there are some."""
    kind = world.pick(rng, KINDS)
    if kind == "exact":
        return needed
    reach = 1 + int(rng.random() * needed.shape[0] / 16)
    if kind == "dilated":
        return dilated(needed, reach)
    if kind == "box":
        return box(needed, tuple(int(rng.random() * (reach + 1)) for _ in range(4)))
    return brushed(needed, rng)


def dilated(mask: Bool[np.ndarray, "h w"], reach: int) -> Bool[np.ndarray, "h w"]:
    """The mask and all pixels within `reach` of it along rows and columns (a square structuring element)."""
    size = 2 * reach + 1
    return np.asarray(ndimage.maximum_filter(mask, size, mode="constant"), bool)


def box(mask: Bool[np.ndarray, "h w"], margins: tuple[int, ...]) -> Bool[np.ndarray, "h w"]:
    """The bounding box of the mask with margins left, top, right, bottom, cut at the image's edge."""
    x0, y0, x1, y1 = bounds(mask)
    left, top, right, bottom = margins
    out = np.zeros_like(mask)
    out[max(y0 - top, 0) : y1 + bottom, max(x0 - left, 0) : x1 + right] = True
    return out


def bounds(mask: Bool[np.ndarray, "h w"]) -> tuple[int, int, int, int]:
    """The bounding box of a mask that is not empty: left, top, and one past right and bottom."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def brushed(needed: Bool[np.ndarray, "h w"], rng: np.random.Generator) -> Bool[np.ndarray, "h w"]:
    """A zigzag of a round brush over the needed pixels, and these pixels themselves."""
    size = needed.shape[0]
    x0, y0, x1, y1 = bounds(needed)
    stray = size / 16
    low, high = np.array([x0 - stray, y0 - stray]), np.array([x1 + stray, y1 + stray])
    corners = low + (high - low) * rng.random((3 + int(rng.random() * 3), 2))
    radius = size * world.between(rng, 0.04, 0.08)
    return needed | _stroke(corners, radius, size)


def _stroke(corners: Float[np.ndarray, "n 2"], radius: float, size: int) -> Bool[np.ndarray, "h w"]:
    """The pixels within `radius` of the line through the corners (x, y), as discs set closely along it."""
    share = np.linspace(0, 1, 8)[:, None, None]
    centres = (corners[:-1] + share * (corners[1:] - corners[:-1])).reshape(-1, 2)
    middles = np.arange(size) + 0.5
    across, down = (middles - centres[:, :1]) ** 2, (middles - centres[:, 1:]) ** 2
    near = across[:, None, :] + down[:, :, None] < radius**2
    return np.logical_or.reduce(near, axis=0)
