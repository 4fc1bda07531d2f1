"""Image metrics: closed forms, invariances, and published pairs."""

import math

import numpy as np
import pytest
from scipy import stats

from nova_jax.evaluation import image_metrics

# The test data of Sharma, Wu, Dalal 2005, table 1: L a b, L a b, CIEDE2000.
SHARMA = """
50.0000 2.6772 -79.7751 50.0000 0.0000 -82.7485 2.0425
50.0000 3.1571 -77.2803 50.0000 0.0000 -82.7485 2.8615
50.0000 2.8361 -74.0200 50.0000 0.0000 -82.7485 3.4412
50.0000 -1.3802 -84.2814 50.0000 0.0000 -82.7485 1.0000
50.0000 -1.1848 -84.8006 50.0000 0.0000 -82.7485 1.0000
50.0000 -0.9009 -85.5211 50.0000 0.0000 -82.7485 1.0000
50.0000 0.0000 0.0000 50.0000 -1.0000 2.0000 2.3669
50.0000 -1.0000 2.0000 50.0000 0.0000 0.0000 2.3669
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0009 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0010 7.1792
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0011 7.2195
50.0000 2.4900 -0.0010 50.0000 -2.4900 0.0012 7.2195
50.0000 -0.0010 2.4900 50.0000 0.0009 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0010 -2.4900 4.8045
50.0000 -0.0010 2.4900 50.0000 0.0011 -2.4900 4.7461
50.0000 2.5000 0.0000 50.0000 0.0000 -2.5000 4.3065
50.0000 2.5000 0.0000 73.0000 25.0000 -18.0000 27.1492
50.0000 2.5000 0.0000 61.0000 -5.0000 29.0000 22.8977
50.0000 2.5000 0.0000 56.0000 -27.0000 -3.0000 31.9030
50.0000 2.5000 0.0000 58.0000 24.0000 15.0000 19.4535
50.0000 2.5000 0.0000 50.0000 3.1736 0.5854 1.0000
50.0000 2.5000 0.0000 50.0000 3.2972 0.0000 1.0000
50.0000 2.5000 0.0000 50.0000 1.8634 0.5757 1.0000
50.0000 2.5000 0.0000 50.0000 3.2592 0.3350 1.0000
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
63.0109 -31.0961 -5.8663 62.8187 -29.7946 -4.0864 1.2630
61.2901 3.7196 -5.3901 61.4292 2.2480 -4.9620 1.8731
35.0831 -44.1164 3.7933 35.0232 -40.0716 1.5901 1.8645
22.7233 20.0904 -46.6940 23.0331 14.9730 -42.5619 2.0373
36.4612 47.8580 18.3852 36.2715 50.5065 21.2231 1.4146
90.8027 -2.0831 1.4410 91.1528 -1.6435 0.0447 1.4441
90.9257 -0.5406 -0.9208 88.6381 -0.8985 -0.7239 1.5381
6.7747 -0.2908 -2.4247 5.8714 -0.0985 -2.2286 0.6377
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def square(left, top, side=4, size=16):
    mask = np.zeros((size, size), bool)
    mask[top : top + side, left : left + side] = True
    return mask


def test_ciede2000_is_that_of_the_published_pairs():
    table = np.array([line.split() for line in SHARMA.strip().splitlines()], np.float64)
    assert len(table) == 34
    for a, b in ((table[:, :3], table[:, 3:6]), (table[:, 3:6], table[:, :3])):
        np.testing.assert_allclose(image_metrics.delta_e2000(a, b), table[:, 6], atol=5.1e-5)


def test_ciede2000_of_black_and_white_is_a_hundred():
    black, white = np.array([[0.0, 0.0, 0.0]]), np.array([[100.0, 0.0, 0.0]])
    assert image_metrics.delta_e2000(black, white)[0] == pytest.approx(100)


def test_iou_of_shifted_squares_is_the_ratio_of_their_areas():
    assert image_metrics.mask_iou(square(2, 2), square(2, 2)) == 1
    assert image_metrics.mask_iou(square(2, 2), square(4, 2)) == pytest.approx(8 / 24)
    assert image_metrics.mask_iou(square(2, 2), square(8, 8)) == 0
    assert image_metrics.mask_iou(square(0, 0, 0), square(0, 0, 0)) == 1


def test_alpha_error_of_a_constant_offset_is_the_offset():
    alpha = np.random.default_rng(0).random((8, 8)) / 2
    assert image_metrics.alpha_error(alpha, alpha + 0.25) == pytest.approx(0.25)


def test_edges_off_by_the_tolerance_count_and_by_more_do_not():
    line = np.zeros((16, 16), bool)
    line[:, 5] = True
    assert image_metrics.edge_f1(np.roll(line, 1, axis=1), line, tolerance=1) == 1
    assert image_metrics.edge_f1(np.roll(line, 2, axis=1), line, tolerance=1) == 0
    assert image_metrics.edge_f1(np.roll(line, 2, axis=1), line, tolerance=2) == 1
    assert image_metrics.edge_f1(line | np.roll(line, 6, axis=1), line) == pytest.approx(2 * 0.5 / 1.5)


def test_maps_without_edges_agree_only_with_each_other():
    none, some = square(0, 0, 0), square(2, 2)
    assert (
        image_metrics.edge_f1(none, none),
        image_metrics.edge_f1(none, some),
        image_metrics.edge_f1(some, none),
    ) == (1, 0, 0)


def test_psnr_looks_at_the_masked_pixels_alone():
    a = np.full((1, 16, 16, 3), 100, np.uint8)
    b = a.copy()
    b[:, square(2, 2)] += 10
    assert image_metrics.psnr(a, b, square(2, 2)) == pytest.approx(20 * math.log10(25.5))
    assert image_metrics.psnr(a, b, square(8, 8)) == math.inf
    assert image_metrics.psnr(a, b, square(2, 2, side=8)) == pytest.approx(20 * math.log10(25.5) + 10 * math.log10(4))
    with pytest.raises(ValueError, match="mask is empty"):
        image_metrics.psnr(a, b, square(0, 0, 0))


def test_a_seam_is_the_jump_across_the_border_of_the_mask():
    flat = np.full((16, 16, 3), 50, np.uint8)
    pasted = flat.copy()
    pasted[square(4, 4)] += 30
    assert image_metrics.seam(flat, square(4, 4)) == 0
    assert image_metrics.seam(pasted, square(4, 4)) == 30
    assert image_metrics.seam(pasted, square(3, 3, side=6)) == 0


def test_palette_error_is_zero_for_colors_that_are_shown_and_their_distance_for_others():
    shown = np.array([[50.0, 40.0, 0.0], [70.0, -20.0, 30.0]])
    lab = np.empty((16, 16, 3))
    lab[:8], lab[8:] = shown
    assert image_metrics.palette_error(lab, shown) == 0
    other = np.array([[30.0, 10.0, -40.0]])
    nearest = image_metrics.delta_e2000(other, shown).min()
    assert image_metrics.palette_error(lab, np.concatenate([shown, other])) == pytest.approx(nearest / 3)


def test_palette_error_ignores_blended_rims_and_specks():
    lab = np.zeros((16, 16, 3))
    lab[:, 8:] = (80.0, 0.0, 0.0)
    lab[:, 7] = (40.0, 0.0, 0.0)
    lab[2, 2] = (40.0, 0.0, 0.0)
    assert image_metrics.palette_error(lab, np.array([[40.0, 0.0, 0.0]])) > 20
    noise = np.random.default_rng(0).uniform(0, 100, (16, 16, 3))
    assert image_metrics.palette_error(noise, lab[0, :1]) == image_metrics.NO_AREA


@pytest.mark.parametrize("levels", [4, 1000])
def test_rank_correlation_is_that_of_scipy_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    a = rng.integers(0, levels, 50)
    b = a + rng.integers(0, levels, 50)
    assert image_metrics.rank_correlation(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)


def test_rank_correlation_sees_order_alone():
    x = np.linspace(0, 3, 9)
    assert image_metrics.rank_correlation(x, np.exp(x)) == pytest.approx(1)
    assert image_metrics.rank_correlation(x, -(x**3)) == pytest.approx(-1)
    assert math.isnan(image_metrics.rank_correlation(x, np.ones(9)))
    with pytest.raises(ValueError, match="two pairs"):
        image_metrics.rank_correlation(x[:1], x[:1])
