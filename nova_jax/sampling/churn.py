"""Stochastic Heun: raise the noise a little before every step, then take the step (arXiv 2206.00364, algorithm 2).

    s_hat = s (1 + gamma),  gamma = min(churn / N, sqrt 2 - 1) where low <= s <= high, else 0        s = sigma / alpha
    x_hat = x with noise added up to s_hat
    x'    = Heun's step from t_hat to t'

Noise is added by `noise.renoise`, which for alpha != 1 also rescales x, so the marginals stay right on every schedule.
At pure noise (s infinite, or t = 1) there is none to add.
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.sampling import exponential, heun, noise, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Churn(sampler.Sampler):
    """EDM's stochastic sampler: second order, two evaluations per step, one in the step to sigma = 0.

    Attributes:
        churn: S_churn, the noise to add over the whole grid; 0 is Heun.
        low: S_min, the lowest sigma / alpha that is churned.
        high: S_max, the highest.
        noise_scale: S_noise, multiplies the fresh noise.
    """

    churn: float = 10.0
    low: float = 0.0
    high: float = math.inf
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.churn < 0 or self.noise_scale < 0:
            raise ValueError(f"churn and noise_scale must be 0 or more, got {self.churn} and {self.noise_scale}")
        if not 0 <= self.low <= self.high:
            raise ValueError(f"low and high must be 0 <= low <= high, got {self.low} and {self.high}")

    @property
    def stages(self) -> int:
        """Two evaluations a step."""
        return 2

    def init(self, problem: sampler.Problem, x: Samples, times: Float[Array, " n"]) -> Float[Array, ""]:
        """log(1 + gamma) of a churned step: the grid says how many share the noise."""
        steps = jnp.sum(times[1:] != times[:-1])
        return jnp.log1p(jnp.minimum(self.churn / jnp.maximum(steps, 1), math.sqrt(2) - 1)).astype(x.dtype)

    def step(
        self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Float[Array, ""], keys: Keys
    ) -> sampler.Step:
        """One step from a little above t."""
        keys = noise.required(keys, self)
        lam = exponential.half_logsnr(problem.schedule, t)
        ratio = jnp.exp(-lam)
        churned = (state > 0) & (self.low <= ratio) & (ratio <= self.high) & jnp.isfinite(lam)
        raised = problem.schedule.inverse_logsnr(2 * (jnp.where(churned, lam, 0) - state))
        t_hat = jnp.where(churned, jnp.clip(raised, t, 1), t)
        z = self.noise_scale * noise.normal(keys, x.shape[1:]).astype(x.dtype)
        x = noise.renoise(x, t, t_hat, z, problem.schedule)
        return heun.Heun().step(problem, x, t_hat, t_next, (), None)._replace(state=state)
