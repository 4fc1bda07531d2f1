"""DPM-Solver++(2S): second order within one step, by an answer inside it (arXiv 2211.01095, algorithm 1).

    x_m = first-order step to lambda_m = lambda + r h
    x'  = alpha' x0 + sigma' eps + alpha' (1 - e^-h) / (2 r) (x0_m - x0)

Two evaluations per step. Where lambda is infinite, at pure noise (alpha = 0) and at clean data (sigma' = 0), there is
no inside: that step is of first order and costs one evaluation.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from nova_jax.sampling import exponential, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP2S(sampler.Sampler):
    """Single-step DPM-Solver++ of second order, two evaluations per step.

    Attributes:
        r: Where inside the step to look, as a part of it in log-SNR; above 0, at most 1.
    """

    r: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.r <= 1:
            raise ValueError(f"r is {self.r}; it must be above 0 and at most 1")

    @property
    def stages(self) -> int:
        """Two evaluations a step."""
        return 2

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step."""
        schedule = problem.schedule
        denoised = problem.denoise(x, t)
        lam, lam_next = (exponential.half_logsnr(schedule, time) for time in (t, t_next))
        first_order = exponential.first_order(denoised, schedule, t_next)
        inside = jnp.isfinite(lam_next - lam)
        lam, h = jnp.where(inside, lam, 0), jnp.where(inside, lam_next - lam, 1)

        def refine() -> sampler.Step:
            middle = schedule.inverse_logsnr(2 * (lam + self.r * h))
            x0_middle, _ = problem.denoise(exponential.first_order(denoised, schedule, middle), middle)
            weight = schedule.alpha(t_next) * -jnp.expm1(-h) / (2 * self.r)
            nfe = problem.evaluations(t) + problem.evaluations(middle)
            return sampler.Step(first_order + weight * (x0_middle - denoised.x0), state, nfe)

        def stay() -> sampler.Step:
            return sampler.Step(first_order, state, problem.evaluations(t))

        return jax.lax.cond(inside, refine, stay)
