"""Exact problems in float64."""

import jax
import jax.experimental
import jax.numpy as jnp
import pytest

from nova_jax.types import Denoised


@pytest.fixture
def float64():
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        yield


@pytest.fixture(scope="session")
def gaussian():
    """The exact denoiser of data N(mean, std^2), and the exact end of its flow from t = 1 to t = 0."""

    def make(schedule, mean=0.7, std=0.4):
        def denoise(x, t, cond):
            t = t.reshape(t.shape + (1,) * (x.ndim - t.ndim))
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            residual = (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)
            return Denoised(x0=mean + alpha * std**2 * residual, eps=sigma * residual)

        def flow(x):
            alpha, sigma = schedule.alpha(jnp.ones(())), schedule.sigma(jnp.ones(()))
            return mean + std * (x - alpha * mean) / jnp.sqrt(alpha**2 * std**2 + sigma**2)

        return denoise, flow

    return make
