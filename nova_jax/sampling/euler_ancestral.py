"""Ancestral Euler: step down to less noise than t' has, then add fresh noise (Karras et al.'s k-diffusion).

In s = sigma / alpha, where the flow is dx/ds = eps for x / alpha,

    s_up = eta s' sqrt(1 - (s'/s)^2)     s_down = sqrt(s'^2 - s_up^2)
    x' = alpha' (x0 + s_down eps) + alpha' noise_scale s_up z,     z ~ N(0, I)

At noise_scale = 1 this is DDIM with the same eta; a little more noise (1.01) keeps detail that small steps wash out.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from nova_jax.sampling import exponential, noise, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class EulerAncestral(sampler.Sampler):
    """First order, stochastic, one evaluation per step.

    Attributes:
        eta: 0 (deterministic) to 1 (all noise that the posterior leaves open).
        noise_scale: multiplies the fresh noise.
    """

    eta: float = 1.0
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}; it must be within 0 (deterministic) and 1 (ancestral)")
        if self.noise_scale < 0:
            raise ValueError(f"noise_scale is {self.noise_scale}; it must be 0 or more")

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step down, and back up to the noise level of t_next."""
        keys = noise.required(keys, self)
        x0, eps = problem.denoise(x, t)
        lam, lam_next = (exponential.half_logsnr(problem.schedule, time) for time in (t, t_next))
        up = self.eta**2 * -jnp.expm1(-2 * (lam_next - lam))  # (s_up / s')^2
        sigma, z = problem.schedule.sigma(t_next), noise.normal(keys, x.shape[1:]).astype(x.dtype)
        x = problem.schedule.alpha(t_next) * x0 + sigma * noise.root(1 - up) * eps
        x = x + sigma * self.noise_scale * noise.root(up) * z
        return sampler.Step(x, state, problem.evaluations(t))
