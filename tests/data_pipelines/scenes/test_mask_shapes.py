"""Masks cover what they have to, and little more."""

import numpy as np
import pytest

from data_pipelines.scenes import mask_shapes, render
from data_pipelines.scenes.world import Object


@pytest.fixture
def needed():
    return render.coverage((Object("triangle", "red", "small", 0.3, 0.6, 0.15),), 32) > 0


def test_a_mask_covers_the_needed_pixels_and_stays_near_them(needed):
    for seed in range(40):
        mask = mask_shapes.sample_mask(needed, np.random.default_rng(seed))
        assert mask[needed].all()
        assert not mask[~mask_shapes.dilated(needed, 9)].any()


def test_a_dilated_pixel_is_a_square():
    mask = np.zeros((9, 9), bool)
    mask[4, 4] = True
    np.testing.assert_array_equal(mask_shapes.dilated(mask, 2), mask_shapes.box(mask, (2, 2, 2, 2)))
    assert mask_shapes.dilated(mask, 2).sum() == 25


def test_a_box_is_cut_at_the_edge_of_the_picture():
    mask = np.zeros((8, 8), bool)
    mask[1, 6] = True
    assert mask_shapes.bounds(mask_shapes.box(mask, (2, 5, 5, 1))) == (4, 0, 8, 3)


def test_strokes_differ_from_each_other(needed):
    masks = {mask_shapes.brushed(needed, np.random.default_rng(seed)).tobytes() for seed in range(10)}
    assert len(masks) == 10
