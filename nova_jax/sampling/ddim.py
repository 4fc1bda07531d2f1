"""DDIM: step towards the predicted x0, with part of the predicted noise and part fresh (arXiv 2010.02502, eq. 12).

    x' = alpha' x0 + sqrt(sigma'^2 - c^2) eps + c z,     c = eta sigma' sqrt(1 - e^(-2h)),     z ~ N(0, I)

with h the step in log(alpha / sigma). eta = 0 is deterministic (and Euler's method on rectified flow); eta = 1 is the
posterior of DDPM. Written for any schedule; on a variance-preserving one it is the paper's.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from nova_jax.sampling import exponential, noise, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(sampler.Sampler):
    """First order, one evaluation per step; stochastic for eta > 0."""

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must be within 0 (deterministic) and 1 (ancestral)")

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step, with fresh noise for eta > 0."""
        denoised = problem.denoise(x, t)
        if self.eta == 0:
            x = exponential.first_order(denoised, problem.schedule, t_next)
            return sampler.Step(x, state, problem.evaluations(t))
        keys = noise.required(keys, self)
        lam, lam_next = (exponential.half_logsnr(problem.schedule, time) for time in (t, t_next))
        drawn = self.eta**2 * -jnp.expm1(-2 * (lam_next - lam))
        sigma, z = problem.schedule.sigma(t_next), noise.normal(keys, x.shape[1:]).astype(x.dtype)
        mean = problem.schedule.alpha(t_next) * denoised.x0 + sigma * noise.root(1 - drawn) * denoised.eps
        return sampler.Step(mean + sigma * noise.root(drawn) * z, state, problem.evaluations(t))
