import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow, VariancePreservingCosine
from nova_jax.sampling import Euler, sample, sample_trajectory, time_grids
from nova_jax.types import Denoised


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VariancePreservingCosine()], ids=["flow", "cosine"])
def test_error_halves_when_steps_double(gaussian, float64, schedule):
    denoise, flow = gaussian(schedule)
    x = jnp.linspace(-2.0, 2.0, 8).reshape(2, 4)

    def error(num_steps):
        times = time_grids.uniform(num_steps)
        return jnp.abs(sample(denoise, x, sampler=Euler(), times=times, schedule=schedule).x - flow(x)).max()

    assert 0.95 < jnp.log2(error(64) / error(256)) / 2 < 1.05


def test_euler_on_gaussian_data_shrinks_by_the_product_of_cosines(gaussian, float64):
    mean, std = 0.7, 0.4
    denoise, _ = gaussian(RectifiedFlow(), mean, std)
    times = np.array([1.0, 0.93, 0.6, 0.45, 0.1, 0.0])
    angle = np.arctan2(times, (1 - times) * std)  # each step turns the rescaled x by an angle and loses its cosine
    x = jnp.linspace(-2.0, 2.0, 8).reshape(2, 4)
    result = sample(denoise, x, sampler=Euler(), times=times, schedule=RectifiedFlow())
    np.testing.assert_allclose(result.x, mean + std * x * np.prod(np.cos(np.diff(angle))), atol=1e-12)


def test_one_step_from_noise_gives_the_mean_of_the_data(gaussian):
    denoise, _ = gaussian(RectifiedFlow(), mean=0.7)
    result = sample(denoise, jnp.ones((2, 3)), sampler=Euler(), times=[1.0, 0.0], schedule=RectifiedFlow())
    np.testing.assert_allclose(result.x, 0.7, atol=1e-6)
    assert result.nfe == 1


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_every_step_costs_one_evaluation(gaussian, num_steps):
    denoise, _ = gaussian(RectifiedFlow())
    times = time_grids.uniform(num_steps)
    assert sample(denoise, jnp.ones((1, 2)), sampler=Euler(), times=times, schedule=RectifiedFlow()).nfe == num_steps


def mixture(weights, means, covariances):
    """The exact denoiser of a mixture of Gaussians under rectified flow."""
    weights, means, covariances = (jnp.asarray(a) for a in (weights, means, covariances))

    def denoise(x, t, cond):
        alpha, sigma = 1 - t[0], t[0]
        spread = alpha**2 * covariances + sigma**2 * jnp.eye(x.shape[-1])[None]
        residual = x[:, None] - alpha * means[None]
        pulled = jnp.einsum("kij,bkj->bki", jnp.linalg.inv(spread), residual)
        logits = jnp.log(weights)[None] - 0.5 * (
            jnp.einsum("bki,bki->bk", residual, pulled) + jnp.linalg.slogdet(spread)[1][None]
        )
        share = jnp.exp(logits - logits.max(-1, keepdims=True))
        share = share / share.sum(-1, keepdims=True)
        x0 = means[None] + alpha * jnp.einsum("kij,bkj->bki", covariances, pulled)
        return Denoised(x0=jnp.einsum("bk,bki->bi", share, x0), eps=sigma * jnp.einsum("bk,bki->bi", share, pulled))

    return denoise


@pytest.mark.parametrize("problem", ["gauss2d", "gmm1d"])
def test_trajectories_equal_those_of_a_public_flow_matching_sampler(shared, float64, problem):
    folder = shared / "reference" / "samplers"
    reference = np.load(folder / "diffusers.npz")
    described = json.loads((folder / "diffusers_index.json").read_text())["problems"][problem]
    denoise = mixture(described["w"], described["mu"], described["cov"])
    walk = functools.partial(sample_trajectory, denoise, sampler=Euler(), schedule=RectifiedFlow())
    walk = jax.jit(lambda x, times, walk=walk: walk(x, times=times))
    start = jnp.asarray(reference[f"{problem}/x_T"])
    for run in ("native_shift1", "pipeline_shift1", "pipeline_shift3", "dynshift_mu1.15"):
        for num_steps in (4, 10, 25):
            times, states = (reference[f"{problem}/fm_euler_{run}/{num_steps}/{name}"] for name in ("s", "x"))
            ours = walk(start, time_grids.pad(times, 25))[: num_steps + 1]
            np.testing.assert_allclose(ours, states, atol=1e-5, err_msg=f"{run} with {num_steps} steps")
