import itertools

import numpy as np
import pytest

from data_pipelines.scenes import palette


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_lab_of_the_srgb_primaries_is_the_published_one(rgb, lab):
    np.testing.assert_allclose(palette.to_lab(np.array(rgb)), lab, atol=0.02)


def test_colors_lie_forty_apart_from_each_other_and_from_every_background():
    names = list(palette.COLORS)
    colors, backgrounds = palette.table(names), palette.table(list(palette.BACKGROUNDS))
    for (i, a), (j, b) in itertools.combinations(enumerate(colors), 2):
        assert np.linalg.norm(a - b) > 40, (names[i], names[j])
    assert np.linalg.norm(colors[:, None] - backgrounds[None], axis=-1).min() > 40


def test_backgrounds_lie_forty_apart_from_each_other():
    for a, b in itertools.combinations(palette.table(list(palette.BACKGROUNDS)), 2):
        assert np.linalg.norm(a - b) > 40


def test_any_color_can_be_written_as_hexadecimal_digits():
    assert palette.rgb("#ff8001") == (255, 128, 1)
    assert palette.rgb("red") == palette.COLORS["red"]
