"""What the camera does in a clip, read from the marks of the backdrop: image registration without any trained network.

The backdrop moves by a similarity from one frame to the next, the same over the whole clip. A point p, measured from
the middle of the picture, is g frames later at

    q = exp(g s) R(g a) p + g t

for a shift t, a growth s and a clockwise turn a per frame. The four numbers are those of least squares

    min  sum over frames k, points p of  w (B[k + g](q) - B[k](p))^2

by Gauss-Newton steps (Lucas and Kanade 1981; Baker and Matthews 2004, "Lucas-Kanade 20 years on"), first from each
frame to the next, then over gaps of 2, 4, 8 and 16 frames, each from where the shorter one ended. B is a frame's
brightness less its median, a little blurred; w leaves out the actors.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

REACH = 0.5  # heights; about as far as a pixel is from the middle on average
BLUR = 0.8  # pixels
GAPS = (1, 2, 4, 8, 16)
ROUNDS = (10, 4, 4, 4, 4)  # Gauss-Newton steps at each gap
DAMPING = 1e-3  # of the mean curvature: what the backdrop does not tell stays zero
BLANK = 0.4  # levels of 255; a backdrop that varies less shows no motion


class Drift(NamedTuple):
    """How the backdrop moves in the picture over the whole clip: lengths in picture heights, y down."""

    x: float
    y: float
    growth: float  # the logarithm of how much larger it is at the end
    turn: float  # clockwise, in degrees

    @property
    def way(self) -> float:
        """How far a point `REACH` from the middle moves by the largest of the three."""
        return max(math.hypot(self.x, self.y), REACH * abs(self.growth), REACH * math.radians(abs(self.turn)))


def fit(pixels: UInt8[np.ndarray, "f h w 3"], covered: Bool[np.ndarray, "f h w"]) -> Drift | None:
    """The motion of the backdrop; None where there is none to be seen: it is blank, covered, or one frame long.

    Args:
        pixels: A clip without a cut.
        covered: What is not backdrop.
    """
    levels, seen = _backdrop(pixels, covered)
    frames, height, _ = levels.shape
    if frames < 2 or not seen.any() or levels[seen].std() < BLANK:
        return None
    step = np.zeros(4)
    for gap, rounds in zip(GAPS, ROUNDS, strict=True):
        if gap < frames:
            step = _register(levels, seen, gap, step, rounds)
    x, y, growth, turn = (step * (frames - 1)).tolist()
    return Drift(x / height, y / height, growth, float(np.degrees(turn)))


def _backdrop(
    pixels: UInt8[np.ndarray, "f h w 3"], covered: Bool[np.ndarray, "f h w"]
) -> tuple[Float[np.ndarray, "f h w"], Bool[np.ndarray, "f h w"]]:
    """The blurred backdrop of every frame, level 0 where it is covered, and where it is not."""
    levels, seen = pixels.mean(axis=-1), ~covered
    for frame, mask in zip(levels, seen, strict=True):
        frame -= np.median(frame[mask]) if mask.any() else 0
    blur = (0, BLUR, BLUR)
    total = ndimage.gaussian_filter(np.where(seen, levels, 0), blur)
    weight = ndimage.gaussian_filter(seen.astype(np.float64), blur)
    return np.where(seen, total / np.maximum(weight, 1e-6), 0), seen


def _register(
    levels: Float[np.ndarray, "f h w"],
    seen: Bool[np.ndarray, "f h w"],
    gap: int,
    step: Float[np.ndarray, " 4"],
    rounds: int,
) -> Float[np.ndarray, " 4"]:
    """Gauss-Newton steps over all pairs of frames `gap` apart: the better (x, y, growth, turn) per frame."""
    frames, height, width = levels.shape
    y, x = np.mgrid[:height, :width] - np.array([height - 1, width - 1])[:, None, None] / 2
    first, later = levels[:-gap], np.arange(gap, frames)[:, None, None]
    slope_y, slope_x = np.gradient(first, axis=(1, 2))
    slopes = gap * np.stack([slope_x, slope_y, slope_x * x + slope_y * y, slope_y * x - slope_x * y])
    for _ in range(rounds):
        grown, turned = np.exp(gap * step[2]), gap * step[3]
        cos, sin = grown * np.cos(turned), grown * np.sin(turned)
        to_x = cos * x - sin * y + gap * step[0] + (width - 1) / 2
        to_y = sin * x + cos * y + gap * step[1] + (height - 1) / 2
        where = np.broadcast_arrays(later, to_y[None], to_x[None])
        moved = ndimage.map_coordinates(levels, where, order=1)
        visible = ndimage.map_coordinates(seen.astype(np.float64), where, order=1, cval=0.0)
        weight = (visible > 0.99) & seen[:-gap]
        weighted = slopes * weight
        curvature = np.einsum("ikhw,jkhw->ij", weighted, slopes)
        damping = DAMPING * np.diag(np.maximum(np.diag(curvature), 1e-6))
        step = step - np.linalg.solve(curvature + damping, np.einsum("ikhw,khw->i", weighted, moved - first))
    return step
