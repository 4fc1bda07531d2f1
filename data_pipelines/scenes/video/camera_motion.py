"""What the camera does in a clip, read from the marks of the backdrop: image registration without any trained network.

The backdrop moves by a similarity from one frame to the next, the same over the whole clip. A point p, measured from
the middle of the image, is g frames later at

    q = exp(g s) R(g a) p + g t

for a shift t, a growth s and a clockwise turn a per frame. The four numbers are those of least squares

    min  sum over frames k, points p of  w (B[k + g](q) - B[k](p))^2

by Gauss-Newton steps (Lucas and Kanade 1981; Baker and Matthews 2004, "Lucas-Kanade 20 years on"), first from each
frame to the next, then over gaps of 4 and of 16 frames, each from where the shorter one ended. B is a frame's
brightness less its median, a little blurred; w leaves out the actors.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

REACH = 0.5  # heights; about as far as a pixel is from the middle on average
BLUR = 0.8  # pixels
GAPS = (1, 4, 16)
PAIRS = 8  # of frames at each gap, spread over the clip
ROUNDS = 10  # Gauss-Newton steps at each gap, at most
CLOSE = 0.02  # pixels over the gap; a smaller step is the last
DAMPING = 1e-3  # of the mean curvature: what the backdrop does not tell stays zero
BLANK = 0.4  # levels of 255; a backdrop that varies less shows no motion


class Drift(NamedTuple):
    """How the backdrop moves in the image over the whole clip: lengths in image heights, y down."""

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
    if frames < 2 or not seen.any() or levels[seen > 0].std() < BLANK:
        return None
    step = np.zeros(4)
    for gap in GAPS:
        if gap < frames:
            step = _register(levels, seen, gap, step)
    x, y, growth, turn = (step * (frames - 1)).tolist()
    return Drift(x / height, y / height, growth, float(np.degrees(turn)))


def _backdrop(
    pixels: UInt8[np.ndarray, "f h w 3"], covered: Bool[np.ndarray, "f h w"]
) -> tuple[Float[np.ndarray, "f h w"], Float[np.ndarray, "f h w"]]:
    """The blurred backdrop of every frame, 0 where it is covered; and 1 where it is not."""
    levels, seen = pixels.mean(axis=-1, dtype=np.float32), ~covered
    for frame, mask in zip(levels, seen, strict=True):
        frame -= np.median(frame[mask]) if mask.any() else 0
    blur = (0, BLUR, BLUR)
    weight = seen.astype(np.float32)
    total = ndimage.gaussian_filter(levels * weight, blur)
    return weight * total / np.maximum(ndimage.gaussian_filter(weight, blur), np.float32(1e-6)), weight


def _register(
    levels: Float[np.ndarray, "f h w"], seen: Float[np.ndarray, "f h w"], gap: int, step: Float[np.ndarray, " 4"]
) -> Float[np.ndarray, " 4"]:
    """Gauss-Newton steps over pairs of frames `gap` apart: the better (x, y, growth, turn) per frame."""
    frames, height, width = levels.shape
    middle_y, middle_x = (height - 1) / 2, (width - 1) / 2
    y, x = np.meshgrid(np.arange(height) - middle_y, np.arange(width) - middle_x, indexing="ij")
    starts = np.unique(np.linspace(0, frames - 1 - gap, PAIRS).round().astype(int))
    first = levels[starts]
    slope_y, slope_x = np.gradient(first, axis=(1, 2))
    slopes = gap * np.stack([slope_x, slope_y, slope_x * x + slope_y * y, slope_y * x - slope_x * y])
    for _ in range(ROUNDS):
        grown, turned = math.exp(gap * step[2]), gap * step[3]
        cos, sin = grown * math.cos(turned), grown * math.sin(turned)
        where = np.stack([sin * x + cos * y + gap * step[1] + middle_y, cos * x - sin * y + gap * step[0] + middle_x])
        moved, visible = (
            np.stack([ndimage.map_coordinates(each[k + gap], where, order=1) for k in starts])
            for each in (levels, seen)
        )
        weighted = (slopes * ((visible > 0.99) * seen[starts])).reshape(4, -1)
        curvature = weighted @ slopes.reshape(4, -1).T
        damping = DAMPING * np.diag(np.maximum(np.diag(curvature), 1e-6))
        change = np.linalg.solve(curvature + damping, weighted @ (moved - first).ravel())
        step = step - change
        if gap * np.abs(change * [1, 1, height / 2, height / 2]).max() < CLOSE:
            break
    return step
