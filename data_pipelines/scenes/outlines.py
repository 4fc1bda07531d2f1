"""The shapes of the scenes world as signed distances.

Each function maps points in the shape's own frame (x right, y down, origin at the centroid, unit radius) to a signed
distance: negative inside, zero on the outline, unit slope across it. Coverage of a pixel is then clip(1/2 - distance in
pixels, 0, 1): antialiasing without supersampling. Sizes are chosen so that shapes of one radius look equally large.
Near sharp corners the distance is a lower bound of the Euclidean one, which only sharpens the tip.

Constructions after I. Quilez, "2D distance functions" (half planes, folding, union by minimum).
"""

import functools
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Plane = Float[np.ndarray, "*dims"]


def circle(x: Plane, y: Plane) -> Plane:
    """A disc of radius 1."""
    return np.hypot(x, y) - 1.0


def square(x: Plane, y: Plane) -> Plane:
    """An upright square."""
    return np.maximum(np.abs(x), np.abs(y)) - 0.88


def triangle(x: Plane, y: Plane, inradius: float = 0.625) -> Plane:
    """An equilateral triangle, point up: three half planes."""
    return np.maximum(math.sqrt(0.75) * np.abs(x) - 0.5 * y, y) - inradius


def star(x: Plane, y: Plane, outer: float = 1.3, inner: float = 0.6) -> Plane:
    """A five-pointed star: fold the plane into one half point, then one half plane."""
    half = math.pi / 5
    angle = np.abs(np.mod(np.arctan2(x, -y) + half, 2 * half) - half)
    radius = np.hypot(x, y)
    normal_x, normal_y = inner * math.sin(half), outer - inner * math.cos(half)  # of the edge from tip to notch
    across = normal_x * (radius * np.cos(angle) - outer) + normal_y * radius * np.sin(angle)
    return across / math.hypot(normal_x, normal_y)


def cross(x: Plane, y: Plane, arm: float = 1.12, half_width: float = 0.38) -> Plane:
    """A plus sign: two bars."""
    x, y = np.abs(x), np.abs(y)
    return np.minimum(np.maximum(x - arm, y - half_width), np.maximum(x - half_width, y - arm))


def diamond(x: Plane, y: Plane, half_width: float = 0.86, half_height: float = 1.3) -> Plane:
    """An upright rhombus, taller than wide."""
    edge = math.hypot(half_width, half_height)
    return (np.abs(x) * half_height + np.abs(y) * half_width - half_width * half_height) / edge


def ring(x: Plane, y: Plane, middle: float = 0.82, half_width: float = 0.27) -> Plane:
    """An annulus."""
    return np.abs(np.hypot(x, y) - middle) - half_width


def heart(x: Plane, y: Plane, side: float = 0.68) -> Plane:
    """A square on its corner with a half disc on each upper side, lowered so that its centroid is the origin."""
    y = y - 0.443 * side  # pi * (1 + 4 / (3 pi)) / sqrt(2) / (4 + pi) of the half side
    x = np.abs(x)
    offset = side / math.sqrt(2)
    body = np.maximum(np.abs(x + y), np.abs(x - y)) / math.sqrt(2) - side
    return np.minimum(body, np.hypot(x - offset, y + offset) - side)


SHAPES: dict[str, Callable[[Plane, Plane], Plane]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "diamond": diamond,
    "ring": ring,
    "heart": heart,
}

# A turn in degrees that leaves a shape as it is.
PERIODS: dict[str, int] = {
    "circle": 60,
    "square": 90,
    "triangle": 120,
    "star": 72,
    "cross": 90,
    "diamond": 180,
    "ring": 60,
    "heart": 360,
}


def least_turn(shape: str, degrees: int) -> int:
    """The smallest turn, either way, that looks like the given one."""
    period = PERIODS[shape]
    return (degrees + period // 2) % period - period // 2


def _unit_grid(points: int, reach: float = 1.5) -> tuple[Plane, Plane, float]:
    """Cell centres of a fine grid over the unit shape, and the area of a cell."""
    axis = (np.arange(points) + 0.5) / points * 2 * reach - reach
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y, (2 * reach / points) ** 2


@functools.cache
def area(shape: str) -> float:
    """Area of a shape of unit radius (a circle: pi)."""
    x, y, cell = _unit_grid(1001)
    return float((SHAPES[shape](x, y) < 0).sum() * cell)


def extent(shape: str, degrees: int) -> tuple[float, float, float, float]:
    """Bounding box (left, top, right, bottom) of a shape of unit radius, turned clockwise by whole degrees."""
    return _extent(shape, least_turn(shape, degrees))


@functools.cache
def _extent(shape: str, degrees: int) -> tuple[float, float, float, float]:
    x, y, cell = _unit_grid(301)
    inside = SHAPES[shape](x, y) < 0
    x, y = x[inside], y[inside]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    across, down, half = x * cos - y * sin, x * sin + y * cos, math.sqrt(cell) / 2
    left, top, right, bottom = across.min() - half, down.min() - half, across.max() + half, down.max() + half
    return float(left), float(top), float(right), float(bottom)
