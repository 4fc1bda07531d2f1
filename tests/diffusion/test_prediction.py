import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow, VariancePreservingCosine, prediction
from nova_jax.types import Denoised

KINDS = typing.get_args(prediction.Kind)
SCHEDULES = [RectifiedFlow(), VariancePreservingCosine()]
SHAPE = (4, 3, 2, 2, 5)


@functools.partial(jax.jit, static_argnums=(0, 3))
def add_noise_and_return(kind, truth, t, schedule):
    x_t = prediction.add_noise(*truth, t, schedule)
    return prediction.denoised_from(kind, prediction.target_from(kind, truth, t, schedule), x_t, t, schedule)


@functools.partial(jax.jit, static_argnums=(0, 4))
def denoised_from(kind, guess, x_t, t, schedule):
    return prediction.denoised_from(kind, guess, x_t, t, schedule)


def total(guess, kind, *args):
    return sum(part.sum() for part in denoised_from(kind, guess, *args))


def pair(dtype=jnp.float64):
    x0, eps = jax.random.normal(jax.random.key(0), (2, *SHAPE), dtype)
    return Denoised(x0, eps)


def test_every_kind_returns_to_the_pair_it_came_from(float64):
    for schedule in SCHEDULES:
        for kind in KINDS:
            for time_shape in [(4,), (4, 3)]:
                truth = pair()
                t = jax.random.uniform(jax.random.key(1), time_shape, jnp.float64, 0.01, 0.99)
                found = add_noise_and_return(kind, truth, t, schedule)
                np.testing.assert_allclose(found.x0, truth.x0, atol=1e-11)
                np.testing.assert_allclose(found.eps, truth.eps, atol=1e-11)


def test_any_prediction_keeps_the_pair_on_the_line_through_x_t(float64):
    for schedule in SCHEDULES:
        for kind in KINDS:
            x_t, guess = pair()
            t = jnp.array([0.1, 0.4, 0.6, 0.9])
            found = denoised_from(kind, guess, x_t, t, schedule)
            np.testing.assert_allclose(prediction.add_noise(*found, t, schedule), x_t, atol=1e-12)
            np.testing.assert_allclose(prediction.target_from(kind, found, t, schedule), guess, atol=1e-12)


def test_nothing_blows_up_at_either_end_and_neither_do_gradients():
    for schedule in SCHEDULES:
        for kind in KINDS:
            x_t, guess = pair(jnp.float32)
            t = jnp.array([0.0, 1.0, 0.0, 1.0])
            found = denoised_from(kind, guess, x_t, t, schedule)
            assert all(bool(jnp.isfinite(part).all()) for part in found)
            gradient = jax.grad(total)(guess, kind, x_t, t, schedule)
            assert bool(jnp.isfinite(gradient).all())


def test_v_and_velocity_are_exact_at_both_ends(float64):
    for kind in ["v", "velocity"]:
        for schedule in SCHEDULES:
            truth = pair()
            found = add_noise_and_return(kind, truth, jnp.array([0.0, 1.0, 0.0, 1.0]), schedule)
            np.testing.assert_allclose(found.x0, truth.x0, atol=1e-12)
            np.testing.assert_allclose(found.eps, truth.eps, atol=1e-12)


def test_undetermined_ends_are_the_mean_of_what_is_unknown():
    x_t, guess = pair(jnp.float32)
    at = jnp.zeros(4)
    assert not prediction.denoised_from("x0", guess, x_t, at, RectifiedFlow()).eps.any()
    assert not prediction.denoised_from("eps", guess, x_t, at + 1, RectifiedFlow()).x0.any()


def test_the_velocity_of_rectified_flow_is_eps_minus_x0(float64):
    truth = pair()
    target = prediction.target_from("velocity", truth, jnp.full(4, 0.3), RectifiedFlow())
    np.testing.assert_allclose(target, truth.eps - truth.x0, atol=1e-15)


def test_error_factors_say_how_far_the_pair_moves_with_the_prediction(float64):
    for schedule in SCHEDULES:
        for kind in KINDS:
            x_t, guess = pair()
            t = jnp.array([0.1, 0.4, 0.6, 0.9])
            before = denoised_from(kind, guess, x_t, t, schedule)
            after = denoised_from(kind, guess + 1, x_t, t, schedule)
            for part, factor in zip(("x0", "eps"), prediction.error_factors(kind, t, schedule), strict=True):
                moved = jnp.abs(getattr(after, part) - getattr(before, part))
                np.testing.assert_allclose(moved, prediction.right_pad(factor, moved) * jnp.ones_like(moved), rtol=1e-9)


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="x0, eps, v, velocity"):
        prediction.check("score")
