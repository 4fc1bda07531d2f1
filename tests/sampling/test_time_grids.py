import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow, VarianceExploding, VariancePreservingCosine, schedules
from nova_jax.sampling import time_grids

FLOW, COSINE, EXPLODING = RectifiedFlow(), VariancePreservingCosine(), VarianceExploding()
GRIDS = {
    "uniform": time_grids.uniform,
    "shifted": lambda n: time_grids.shifted(n, 3.0),
    "logsnr": lambda n: time_grids.logsnr(n, FLOW),
    "logsnr cosine": lambda n: time_grids.logsnr(n, COSINE),
    "karras": lambda n: time_grids.karras(n, FLOW),
    "karras cosine": lambda n: time_grids.karras(n, COSINE),
    "karras exploding": lambda n: time_grids.karras(n, EXPLODING),
    "quadratic": time_grids.quadratic,
    "cosine": time_grids.cosine,
    "uniform_angle": lambda n: time_grids.uniform_angle(n, FLOW, std=0.7),
    "uniform_angle cosine": lambda n: time_grids.uniform_angle(n, COSINE),
    "uniform_angle exploding": lambda n: time_grids.uniform_angle(n, EXPLODING, std=0.5),
}


def test_every_grid_falls_from_exactly_one_to_exactly_zero():
    for name in GRIDS:
        for num_steps in [1, 2, 3, 50]:
            times = GRIDS[name](num_steps)
            assert times.shape == (num_steps + 1,)
            assert times[0] == 1
            assert times[-1] == 0
            assert np.all(np.diff(times) < 0)


def test_shift_one_is_uniform_and_the_shift_is_that_of_the_papers(shared):
    np.testing.assert_allclose(time_grids.shifted(10, 1.0), time_grids.uniform(10), atol=1e-7)
    reference = np.load(shared / "reference" / "samplers" / "diffusers.npz")
    for num_steps in (4, 10, 25):
        expected = reference[f"gauss2d/fm_euler_pipeline_shift3/{num_steps}/s"]
        np.testing.assert_allclose(time_grids.shifted(num_steps, 3.0), expected, atol=1e-6)
        expected = reference[f"gauss2d/fm_euler_dynshift_mu1.15/{num_steps}/s"]
        if num_steps == 4:
            np.testing.assert_allclose(time_grids.shifted(num_steps, np.exp(1.15)), expected, atol=1e-3)


@pytest.mark.parametrize("schedule", [FLOW, COSINE], ids=["flow", "cosine"])
def test_logsnr_steps_are_equal_between_its_ends(schedule):
    inner = time_grids.logsnr(12, schedule, start=0.99, stop=0.01)[1:-1]
    steps = np.diff(schedule.logsnr(inner))
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-3)
    np.testing.assert_allclose(inner[-1], 0.01, rtol=1e-4)


def test_karras_steps_are_equal_in_the_seventh_root_of_the_noise_level():
    times = time_grids.karras(12, FLOW, start=0.99, stop=0.01)[1:-1]
    root = (times / (1 - times)) ** (1 / 7)
    np.testing.assert_allclose(np.diff(root), np.diff(root).mean(), rtol=1e-3)


def test_padding_repeats_the_last_time_and_refuses_to_cut():
    padded = time_grids.pad([1.0, 0.5, 0.0], 5)
    np.testing.assert_array_equal(padded, [1.0, 0.5, 0.0, 0.0, 0.0, 0.0])
    np.testing.assert_array_equal(time_grids.pad(padded, 5), padded)
    with pytest.raises(ValueError, match="does not fit"):
        time_grids.pad(jnp.linspace(1.0, 0.0, 6), 4)


def test_a_grid_without_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        time_grids.uniform(0)


def test_shifts_compose_by_multiplication():
    times = time_grids.uniform(16)
    twice = schedules.shift_time(schedules.shift_time(times, 2.0), 3.0)
    np.testing.assert_allclose(twice, time_grids.shifted(16, 6.0), atol=1e-7)


def test_equal_angles_are_equal():
    times = time_grids.uniform_angle(9, FLOW, std=0.7)
    angles = np.arctan2(np.asarray(times), 0.7 * (1 - np.asarray(times)))
    np.testing.assert_allclose(np.diff(angles), -np.pi / 18, rtol=1e-4)


@pytest.mark.parametrize(
    "name", ["uniform", "shifted:3", "shifted", "quadratic", "cosine", "uniform_angle:0.5", "karras:5"]
)
def test_grids_have_names(name):
    times = time_grids.named(name, 7, FLOW)
    time_grids.check(times)
    assert len(times) == 8


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("linear", "unknown time grid 'linear': use one of uniform, shifted"),
        ("uniform:3", "takes no number"),
        ("shifted:many", "must be a number"),
        ("shifted:-1", "must be above 0"),
        ("nowhere/grid.json", "cannot read the time grid nowhere/grid.json"),
    ],
)
def test_names_that_mean_no_grid_are_refused(name, message):
    with pytest.raises(ValueError, match=message):
        time_grids.named(name, 4, FLOW)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0], "at least two times"),
        ([0.9, 0.0], "must start at 1"),
        ([1.0, 0.1], "end at 0"),
        ([1.0, 0.4, 0.5, 0.0], "must fall, but time 2 is 0.5 after 0.4"),
        ([1.0, float("nan"), 0.0], "must fall"),
    ],
)
def test_lists_that_do_not_fall_from_one_to_zero_are_refused(times, message):
    with pytest.raises(ValueError, match=message):
        time_grids.from_list(times)
    np.testing.assert_array_equal(time_grids.from_list([1.0, 0.25, 0.0]), [1.0, 0.25, 0.0])
