import math

import numpy as np
import pytest

from data_pipelines.scenes import outlines

AREAS = {
    "circle": math.pi,
    "square": 4 * 0.88**2,
    "triangle": 3 * math.sqrt(3) * 0.625**2,
    "star": 5 * 1.3 * 0.6 * math.sin(math.pi / 5),
    "cross": 8 * 1.12 * 0.38 - 4 * 0.38**2,
    "diamond": 2 * 0.86 * 1.3,
    "ring": 4 * math.pi * 0.82 * 0.27,
    "heart": (4 + math.pi) * 0.68**2,
}


def grid(points=400, reach=1.6):
    axis = (np.arange(points) + 0.5) / points * 2 * reach - reach
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return x, y


def test_every_shape_has_its_area_here():
    assert set(AREAS) == set(outlines.SHAPES)


@pytest.mark.parametrize("shape", outlines.SHAPES)
def test_area_is_the_closed_form(shape):
    assert outlines.area(shape) == pytest.approx(AREAS[shape], rel=3e-3)


@pytest.mark.parametrize("shape", outlines.SHAPES)
def test_centroid_is_the_origin(shape):
    x, y = grid()
    inside = outlines.SHAPES[shape](x, y) < 0
    assert abs(x[inside].mean()) < 2e-3
    assert abs(y[inside].mean()) < 2e-3


@pytest.mark.parametrize("shape", outlines.SHAPES)
def test_distance_has_unit_slope_across_the_outline(shape):
    """A signed distance: |gradient| = 1 almost everywhere near the zero level (kinks are of measure zero)."""
    x, y = grid()
    d = outlines.SHAPES[shape](x, y)
    step = x[0, 1] - x[0, 0]
    slope = np.hypot(*np.gradient(d, step))[np.abs(d) < 0.05]
    assert np.quantile(np.abs(slope - 1), 0.9) < 0.01
    assert slope.max() < 1.05


@pytest.mark.parametrize("shape", outlines.SHAPES)
def test_extent_is_the_tight_box_of_the_turned_shape(shape):
    x, y = grid()
    for degrees in (0, 7, -20):
        turn = math.radians(degrees)
        turned_back = (x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn))
        inside = outlines.SHAPES[shape](*turned_back) < 0
        box = (x[inside].min(), y[inside].min(), x[inside].max(), y[inside].max())
        np.testing.assert_allclose(outlines.extent(shape, degrees), box, atol=0.03)
