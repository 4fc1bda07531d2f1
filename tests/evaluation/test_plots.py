import math
import re
from xml.etree import ElementTree

import numpy as np
import pytest

from nova_jax.evaluation import plots
from nova_jax.evaluation.plots import Series


def path_of(markup, kind="line"):
    """Coordinates of the first path of a class."""
    figure = ElementTree.fromstring(markup)
    path = next(p for p in figure.iter("path") if p.get("class", "").split()[0] == kind)
    return path.get("d")


def ticks_of(markup):
    return [t.text for t in ElementTree.fromstring(markup).iter("text") if t.get("class", "").startswith("tick")]


def test_a_plot_is_well_formed_and_places_data_on_its_axes():
    markup = plots.draw([Series("a", [0, 10], [0, 1])], x_label="step", y_label="loss")
    (x0, y0), (x1, y1) = (tuple(map(float, p.split())) for p in re.split("[ML]", path_of(markup))[1:])
    assert (x0, x1) == (plots.LEFT, plots.WIDTH - plots.RIGHT)
    assert plots.TOP < y1 < y0 < plots.HEIGHT - plots.BOTTOM  # up is more
    assert "step" in markup
    assert "loss" in markup


def test_equal_factors_are_equal_distances_on_a_logarithmic_axis():
    markup = plots.draw([Series("a", [1, 10, 100, 1000], [1, 2, 4, 8])], log_x=True, log_y=True)
    points = np.array([list(map(float, p.split())) for p in re.split("[ML]", path_of(markup))[1:]])
    steps = np.diff(points, axis=0)
    np.testing.assert_allclose(steps, np.broadcast_to(steps[0], steps.shape), atol=0.11)  # rounded to 0.1 pixel


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.0, 17.0), (0.001, 0.0011), (0.0, 1e6), (5.0, 5.5), (1e-9, 3e-9)]
)
def test_ticks_are_round_few_and_inside(low, high):
    ticks = plots._ticks(low, high)
    assert 3 <= len(ticks) <= 7
    assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in ticks)
    steps = np.diff(ticks)
    np.testing.assert_allclose(steps, steps[0], rtol=1e-6)
    leading = steps[0] / 10 ** math.floor(math.log10(steps[0]) + 1e-9)
    assert min(abs(leading - m) for m in (1, 2, 5)) < 1e-6


@pytest.mark.parametrize(("low", "high"), [(1e-4, 1), (0.3, 0.9), (2, 40), (1e-30, 1e30)])
def test_logarithmic_ticks_are_few_and_inside(low, high):
    ticks = plots._log_ticks(math.log10(low), math.log10(high))
    assert 2 <= len(ticks) <= 10
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)


def test_values_that_are_not_finite_leave_a_gap():
    markup = plots.draw([Series("a", range(6), [1, 2, math.nan, 3, math.inf, 4])])
    assert path_of(markup).count("M") == 3
    assert "nan" not in path_of(markup)


def test_zero_on_a_logarithmic_axis_leaves_a_gap():
    assert path_of(plots.draw([Series("a", range(1, 5), [1, 0, 2, 3])], log_y=True)).count("M") == 2


@pytest.mark.parametrize("series", [[], [Series("a", [], [])], [Series("a", [1], [math.nan])]])
def test_nothing_to_plot_says_so(series):
    assert "Nothing to plot yet" in plots.draw(series)


def test_one_value_alone_is_drawn():
    assert plots.draw([Series("a", [3], [0.5], style="points")]).count("<circle") == 1
    assert "nan" not in plots.draw([Series("a", [0], [0])])


def test_long_lines_are_thinned_and_keep_their_spikes():
    y = np.zeros(100_000)
    y[54_321] = 7.0
    markup = plots.draw([Series("a", np.arange(100_000), y)])
    heights = [float(p.split()[1]) for p in re.split("[ML]", path_of(markup))[1:]]
    assert len(heights) <= plots.MAX_POINTS
    assert sum(h < plots.HEIGHT / 2 for h in heights) == 1


def test_legend_names_all_series_but_the_faint():
    series = [
        Series("raw", [0, 1], [0, 1], style="faint"),
        Series("one", [0, 1], [0, 1]),
        Series("two", [0, 1], [1, 0]),
    ]
    figure = ElementTree.fromstring(plots.draw(series))
    assert ["".join(li.itertext()) for li in figure.iter("li")] == ["one", "two"]
    assert not list(ElementTree.fromstring(plots.draw(series[:2])).iter("li"))


def test_intervals_become_a_band_or_whiskers():
    bounds = {"low": [0, 0], "high": [2, 3]}
    assert path_of(plots.draw([Series("a", [0, 1], [1, 2], **bounds)]), "band").endswith("Z")
    assert plots.draw([Series("a", [0, 1], [1, 2], **bounds, style="points")]).count('class="line') == 2


def test_points_of_several_series_at_one_x_stand_side_by_side():
    series = [Series(name, [1, 2 + i], [0, 1], style="points") for i, name in enumerate("abc")]
    figure = ElementTree.fromstring(plots.draw(series))
    places = [float(dot.get("cx")) for dot in figure.iter("circle") if dot.get("cx") != "12"]
    np.testing.assert_allclose(np.diff(places[::2]), plots.ASIDE, atol=0.06)  # x = 1
    np.testing.assert_allclose(np.diff(places[1::2]), (places[-1] - places[2]) / 3, atol=0.1)  # x = 2, 3, 4


def test_names_and_labels_are_escaped():
    evil = '</text><script>alert(1)</script>"'
    markup = plots.draw(
        [Series(evil, [1], [1], labels=[evil], style="points"), Series("b", [1], [2])], x_label=evil, y_label=evil
    )
    assert "<script" not in markup
    ElementTree.fromstring(markup)


def test_series_of_unequal_length_are_an_error():
    with pytest.raises(ValueError, match="series 'a' has 2 x but 3 y values"):
        plots.draw([Series("a", [1, 2], [1, 2, 3])])


def test_smoothing_keeps_a_constant_and_has_no_bias_at_the_start():
    np.testing.assert_allclose(plots.smooth(np.full(50, 3.0), 10), 3.0)
    y = np.random.default_rng(0).normal(size=4000)
    assert plots.smooth(y, 100)[500:].std() < 0.15
    np.testing.assert_array_equal(plots.smooth(y, 1), y)
    np.testing.assert_allclose(plots.smooth([math.nan, 2.0, math.nan, 2.0], 5), [math.nan, 2, 2, 2])


def test_pareto_front_holds_exactly_the_points_no_other_beats():
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 12, 60), rng.integers(0, 12, 60)
    front = set(plots.pareto_front(x, y).tolist())

    def beaten(i):
        return any((x[j] <= x[i] and y[j] >= y[i]) and (x[j] < x[i] or y[j] > y[i]) for j in range(60))

    assert {(x[i], y[i]) for i in front} == {(x[i], y[i]) for i in range(60) if not beaten(i)}
    assert (np.diff(x[sorted(front, key=lambda i: x[i])]) > 0).all()


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.25, "0.25"), (1500, "1500"), (20000, "20k"), (3e6, "3M"), (1e-5, "1e-05")]
)
def test_numbers_are_short(value, text):
    assert plots.number(value) == text


def test_a_series_set_apart_has_diamonds_and_dashes():
    apart, other = (Series(name, [1, 2], [1, 2], is_set_apart=name == "apart") for name in ("apart", "other"))
    lines = ElementTree.fromstring(plots.draw([apart, other])).iter("path")
    dashed = {p.get("class") for p in lines if p.get("class", "").startswith("line")}
    assert dashed == {"line c0 dashed", "line c1"}
    points = ElementTree.fromstring(plots.draw([s._replace(style="points") for s in (apart, other)]))
    assert {mark.tag for mark in points.iter() if mark.get("class") == "dot c0"} == {"path"}
    assert {mark.tag for mark in points.iter() if mark.get("class") == "dot c1"} == {"circle"}
