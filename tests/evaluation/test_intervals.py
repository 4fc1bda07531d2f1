import math

import numpy as np
import pytest

from nova_jax.evaluation import intervals


def test_bounds_are_the_rates_whose_z_test_is_just_rejected():
    """Wilson's defining equation: |k / n - p| = z sqrt(p (1 - p) / n) at both ends."""
    for k, n in ((1, 10), (37, 100), (950, 1000)):
        for p in intervals.wilson(k, n):
            assert abs(k / n - p) == pytest.approx(1.959963985 * math.sqrt(p * (1 - p) / n), rel=1e-6)


def test_a_rate_of_zero_has_the_closed_form_upper_bound():
    assert intervals.wilson(0, 10) == pytest.approx((0.0, 3.841458821 / (10 + 3.841458821)))


def test_failures_mirror_successes():
    low, high = intervals.wilson(3, 17)
    assert intervals.wilson(14, 17) == pytest.approx((1 - high, 1 - low))


def test_coverage_is_near_nominal_for_every_rate():
    """Exact binomial coverage, summed over outcomes: 95 % on average over p, and never far below."""
    n = 80
    bounds = [intervals.wilson(k, n) for k in range(n + 1)]
    covered = []
    for p in (i / 200 for i in range(2, 199)):
        inside = [k for k in range(n + 1) if bounds[k][0] <= p <= bounds[k][1]]
        covered.append(sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in inside))
    assert sum(covered) / len(covered) == pytest.approx(0.95, abs=0.01)
    assert min(covered) > 0.88


def test_more_confidence_and_less_data_widen_the_interval():
    bounds = [intervals.wilson(8, 10, confidence) for confidence in (0.8, 0.95, 0.99)]
    widths = [high - low for low, high in bounds]
    assert widths == sorted(widths)
    few, many = intervals.wilson(8, 10), intervals.wilson(800, 1000)
    assert few[1] - few[0] > 5 * (many[1] - many[0])


def test_nothing_tried_says_nothing():
    assert intervals.wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("arguments", "message"), [((5, 4), "5 of 4"), ((-1, 4), "-1 of 4"), ((1, 4, 95.0), "0.95")])
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        intervals.wilson(*arguments)


def test_root_means_of_normal_samples_are_covered_as_often_as_claimed():
    """Means of 8 normal numbers around 9: Student's interval is exact, so 95 % of the intervals of roots hold 3."""
    draws = np.random.default_rng(0).normal(9.0, 1.0, (4000, 8))
    found = [intervals.root_mean(squares) for squares in draws]
    held = np.mean([each["low"] <= 3.0 <= each["high"] for each in found])
    assert abs(held - 0.95) < 0.011  # three standard errors
    np.testing.assert_allclose([each["value"] for each in found], np.sqrt(draws.mean(axis=1)))


def test_one_square_has_no_interval_and_ends_are_never_below_0():
    assert intervals.root_mean([4.0]) == {"value": 2.0, "low": 2.0, "high": 2.0, "n": 1}
    assert intervals.root_mean([0.0, 1.0])["low"] == 0.0


def test_means_are_covered_as_often_as_claimed():
    draws = np.random.default_rng(1).normal(-2.0, 3.0, (4000, 8))
    found = [intervals.mean(values) for values in draws]
    held = np.mean([each["low"] <= -2.0 <= each["high"] for each in found])
    assert abs(held - 0.95) < 0.011  # three standard errors
    assert intervals.mean([4.0]) == {"value": 4.0, "low": 4.0, "high": 4.0, "n": 1}
