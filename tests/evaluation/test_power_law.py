"""Power laws through measured distances."""

import math

import numpy as np
import pytest

from nova_jax.evaluation import power_law


def test_an_exact_law_is_found_and_followed_to_its_goal():
    spent = [1e4, 3e4, 1e5]
    law = power_law.fit(spent, [2 * n**-0.3 for n in spent], [1e-6] * 3)
    assert law.exponent == pytest.approx(0.3, rel=1e-9)
    assert law.at(1e6) == pytest.approx(2 * 1e6**-0.3, rel=1e-9)
    found = law.spent_for(2 * 1e6**-0.3)
    assert found["value"] == pytest.approx(1e6, rel=1e-6)
    assert found["low"] == pytest.approx(1e6, rel=0.01)
    assert found["high"] == pytest.approx(1e6, rel=0.01)


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    spent = np.array([1e4, 2e4, 4e4, 8e4])
    truth = 5 * spent**-0.4
    goal = 5 * 1e6**-0.4
    hits = 0
    for _ in range(300):
        errors = 0.05 * truth
        law = power_law.fit(spent, truth + errors * rng.standard_normal(4), errors)
        found = law.spent_for(goal)
        hits += found["low"] <= 1e6 <= found["high"]
    assert 0.91 <= hits / 300 <= 0.99


def test_what_does_not_get_better_never_arrives():
    law = power_law.fit([1.0, 2.0], [0.5, 0.5], [0.01, 0.01])
    assert law.spent_for(0.4)["value"] == math.inf
    assert law.spent_for(0.4)["high"] == math.inf
    slightly = power_law.fit([1.0, 2.0], [0.5, 0.49], [0.01, 0.01])
    assert slightly.spent_for(0.4)["value"] < math.inf
    assert slightly.spent_for(0.4)["high"] == math.inf


def test_a_bad_measurement_is_named():
    with pytest.raises(ValueError, match="two different costs"):
        power_law.fit([1e4, 1e4], [0.1, 0.2], [0.01, 0.01])
    with pytest.raises(ValueError, match="leave out what has arrived"):
        power_law.fit([1e4, 2e4], [0.1, 0.0], [0.01, 0.01])
