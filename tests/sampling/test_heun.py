import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow, VariancePreservingCosine, classifier_free
from nova_jax.sampling import Euler, Heun, sample, time_grids
from nova_jax.types import Denoised


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VariancePreservingCosine()], ids=["flow", "cosine"])
def test_error_falls_fourfold_when_steps_double(gaussian, float64, schedule):
    denoise, flow = gaussian(schedule)
    x = jnp.linspace(-2.0, 2.0, 8).reshape(2, 4)

    def error(num_steps):
        times = time_grids.uniform(num_steps)
        return jnp.abs(sample(denoise, x, sampler=Heun(), times=times, schedule=schedule).x - flow(x)).max()

    assert 1.9 < jnp.log2(error(64) / error(256)) / 2 < 2.1


@pytest.mark.parametrize(("times", "nfe"), [([1.0, 0.0], 1), ([1.0, 0.5, 0.0], 3), ([1.0, 0.5, 0.25], 4)])
def test_only_the_step_to_clean_data_costs_one_evaluation(gaussian, times, nfe):
    denoise, _ = gaussian(RectifiedFlow())
    run = jax.jit(lambda x: sample(denoise, x, sampler=Heun(), times=times, schedule=RectifiedFlow()))
    assert run(jnp.ones((2, 3))).nfe == nfe


def test_the_network_is_never_asked_about_clean_data():
    seen = []

    def denoise(x, t, cond):
        jax.debug.callback(lambda t: seen.append(float(t)), t[0])
        return Denoised(x0=0 * x, eps=x)

    sample(denoise, jnp.ones((1, 2)), sampler=Heun(), times=[1.0, 0.5, 0.0], schedule=RectifiedFlow())
    jax.effects_barrier()
    assert sorted(seen) == [0.5, 0.5, 1.0]


def test_guidance_doubles_the_cost_of_every_evaluation(gaussian):
    denoise, _ = gaussian(RectifiedFlow())
    guided = classifier_free(denoise, 4.0, null=jnp.zeros_like)
    result = sample(
        guided,
        jnp.ones((2, 3)),
        sampler=Heun(),
        times=time_grids.uniform(5),
        schedule=RectifiedFlow(),
        cond=jnp.ones(2),
    )
    assert result.nfe == 2 * 9


def test_one_step_is_euler(gaussian):
    denoise, _ = gaussian(RectifiedFlow())
    x = jnp.linspace(-2.0, 2.0, 8).reshape(2, 4)
    heun, euler = (
        sample(denoise, x, sampler=solver, times=[1.0, 0.0], schedule=RectifiedFlow()).x for solver in (Heun(), Euler())
    )
    np.testing.assert_array_equal(heun, euler)
