"""Euler-Maruyama on the reverse SDE that has the marginals of the flow (Song et al. 2020, arXiv 2011.13456, eq. 6).

    dx = (velocity - g^2/2 score) dt + g dw,     score = -eps / sigma,     time running from 1 to 0

For every g the marginals are those of the probability flow. The choice here, g^2 = 2 noise_level sigma sigma', is
finite at both ends of every schedule, and with noise_level 1 it is the SDE of the variance-exploding schedule:

    x' = x + (t' - t) (velocity + noise_level sigma' eps) + sqrt(2 noise_level sigma sigma' (t - t')) z

The step to sigma = 0 draws no noise and returns x0, the mean of what is left (as SiT does, arXiv 2401.08740).
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from nova_jax.sampling import noise, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerMaruyama(sampler.Sampler):
    """Order 1/2 in the path, 1 in the marginals; stochastic, one evaluation per step."""

    noise_level: float = 1.0

    def __post_init__(self) -> None:
        if self.noise_level < 0:
            raise ValueError(f"noise_level is {self.noise_level}; it must be 0 (the flow) or more")

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step of the SDE."""
        keys = noise.required(keys, self)
        schedule = problem.schedule
        x0, eps = problem.denoise(x, t)
        rate = self.noise_level * schedule.d_sigma(t)
        velocity = schedule.d_alpha(t) * x0 + schedule.d_sigma(t) * eps
        variance = 2 * rate * schedule.sigma(t) * (t - t_next)
        z = noise.normal(keys, x.shape[1:]).astype(x.dtype)
        moved = x + (t_next - t) * (velocity + rate * eps) + noise.root(variance) * z
        last = schedule.sigma(t_next) == 0
        return sampler.Step(jnp.where(last, schedule.alpha(t_next) * x0, moved), state, problem.evaluations(t))
