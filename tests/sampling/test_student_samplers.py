"""Samplers of few-step students, on exact flow maps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow
from nova_jax.diffusion import denoiser as denoisers
from nova_jax.sampling import FlowMapSteps, Renoise, sample, time_grids
from nova_jax.types import Conditioning

MEAN, STD = 0.7, 0.4


def spread(t):
    return jnp.sqrt(((1 - t) * STD) ** 2 + t**2)


def average_velocity(params, x, t, cond):
    """Of the exact flow of N(MEAN, STD^2); the velocity itself where r = t."""
    del params
    t, r = t[:, None], cond.r[:, None]
    end = (1 - r) * MEAN + (x - (1 - t) * MEAN) * spread(r) / spread(t)
    slope = (t - (1 - t) * STD**2) / spread(t) ** 2 * (x - (1 - t) * MEAN) - MEAN
    return jnp.where(t > r, (x - end) / jnp.where(t > r, t - r, 1), slope)


DENOISER = denoisers.make_denoiser(average_velocity, {}, RectifiedFlow())


def walk(sampler, times, key=None, count=64):
    z = jax.random.normal(jax.random.key(0), (count, 2))
    run = jax.jit(
        lambda z: sample(
            DENOISER, z, sampler=sampler, times=times, schedule=RectifiedFlow(), cond=Conditioning(), key=key
        )
    )
    return np.asarray(z), run(z)


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_steps_of_an_exact_flow_map_end_at_the_exact_data_whatever_their_number(steps):
    z, found = walk(FlowMapSteps(), time_grids.uniform(steps))
    np.testing.assert_allclose(found.x, MEAN + STD * z, atol=2e-6)
    assert found.nfe == steps


def test_flow_map_steps_run_from_data_to_noise_as_well():
    z, found = walk(FlowMapSteps(), jnp.asarray([0.0, 0.25, 1.0]))
    assert np.all(np.isfinite(found.x))
    assert found.x.shape == z.shape


@pytest.mark.parametrize("steps", [1, 3])
def test_renoising_an_exact_map_keeps_the_law_of_the_data(steps):
    _, found = walk(Renoise(), time_grids.uniform(steps), key=jax.random.key(3), count=100_000)
    np.testing.assert_allclose(np.mean(found.x, axis=0), MEAN, atol=0.005)
    np.testing.assert_allclose(np.std(found.x, axis=0), STD, rtol=0.01)
    assert found.nfe == steps


def test_renoising_in_one_step_is_the_flow_map():
    _, jumped = walk(FlowMapSteps(), time_grids.uniform(1))
    _, renoised = walk(Renoise(), time_grids.uniform(1), key=jax.random.key(3))
    np.testing.assert_allclose(jumped.x, renoised.x, atol=1e-6)


def test_renoising_needs_a_key():
    with pytest.raises(ValueError, match="Renoise is stochastic"):
        walk(Renoise(), time_grids.uniform(2))


@pytest.mark.parametrize("sampler", [FlowMapSteps(), Renoise()])
def test_a_flow_map_needs_a_condition_that_can_hold_r(sampler):
    with pytest.raises(TypeError, match="cond=Conditioning"):
        sample(DENOISER, jnp.ones((2, 2)), sampler=sampler, times=[1.0, 0.0], schedule=RectifiedFlow(), cond=None)
