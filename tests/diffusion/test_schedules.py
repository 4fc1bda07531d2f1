import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow, VariancePreservingCosine, resolution_shift, schedules

SCHEDULES = [RectifiedFlow(), VariancePreservingCosine()]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_time_zero_is_exactly_data_and_time_one_is_noise(schedule):
    ends = jnp.array([0.0, 1.0])
    np.testing.assert_array_equal(schedule.alpha(ends)[0], 1.0)
    np.testing.assert_array_equal(schedule.sigma(ends)[0], 0.0)
    np.testing.assert_allclose(schedule.alpha(ends)[1], 0.0, atol=1e-3)
    np.testing.assert_allclose(schedule.sigma(ends)[1], 1.0, atol=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_logsnr_falls_and_its_inverse_returns_the_time(float64, schedule):
    t = jnp.linspace(0.001, 0.999, 101)
    assert np.all(np.diff(schedule.logsnr(t)) < 0)
    np.testing.assert_allclose(schedule.inverse_logsnr(schedule.logsnr(t)), t, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_derivatives_agree_with_differences(float64, schedule):
    t, h = jnp.linspace(0.01, 0.99, 9).reshape(3, 3), 1e-6
    for f, derivative in ((schedule.alpha, schedule.d_alpha), (schedule.sigma, schedule.d_sigma)):
        np.testing.assert_allclose(derivative(t), (f(t + h) - f(t - h)) / (2 * h), atol=1e-8)


def test_rectified_flow_is_the_straight_line():
    t = jnp.linspace(0.0, 1.0, 5)
    np.testing.assert_array_equal(RectifiedFlow().alpha(t) + RectifiedFlow().sigma(t), jnp.ones(5))
    np.testing.assert_array_equal(RectifiedFlow().d_sigma(t) - RectifiedFlow().d_alpha(t), 2 * jnp.ones(5))


def test_cosine_preserves_variance_and_ends_at_its_last_logsnr(float64):
    schedule = VariancePreservingCosine(last_logsnr=-12.0)
    t = jnp.linspace(0.0, 1.0, 50)
    np.testing.assert_allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1.0, atol=1e-14)
    np.testing.assert_allclose(schedule.logsnr(jnp.ones(())), -12.0, atol=1e-9)


def test_schedules_are_values_and_may_be_static_arguments():
    assert RectifiedFlow() == RectifiedFlow()
    assert hash(VariancePreservingCosine(last_logsnr=-9.0)) != hash(VariancePreservingCosine())
    at = jax.jit(lambda schedule, t: schedule.alpha(t), static_argnums=0)
    np.testing.assert_allclose(at(RectifiedFlow(), jnp.array(0.25)), 0.75)


def test_shift_keeps_both_ends_exactly_and_shifts_compose_by_multiplication(float64):
    t = jnp.linspace(0.0, 1.0, 33)
    for shift in (0.3, 1.15, 3.0, 7.7):
        shifted = schedules.shift_time(t, shift)
        np.testing.assert_array_equal(shifted[jnp.array([0, -1])], [0.0, 1.0])
        np.testing.assert_allclose(shifted, shift * t / (1 + (shift - 1) * t), atol=1e-15)
    np.testing.assert_array_equal(schedules.shift_time(t, 1.0), t)
    twice = schedules.shift_time(schedules.shift_time(t, 2.0), 1.5)
    np.testing.assert_allclose(twice, schedules.shift_time(t, 3.0), atol=1e-15)


def test_a_shift_divides_the_signal_to_noise_ratio_by_its_square(float64):
    t = jnp.linspace(0.05, 0.95, 7)
    fall = RectifiedFlow().logsnr(t) - RectifiedFlow().logsnr(schedules.shift_time(t, 3.0))
    np.testing.assert_allclose(fall, 2 * np.log(3.0), atol=1e-12)


def test_four_times_the_tokens_need_shift_two():
    assert resolution_shift(4096, 1024) == 2
    assert resolution_shift(256, 256) == 1
    with pytest.raises(ValueError, match="at least 1"):
        resolution_shift(0, 256)
