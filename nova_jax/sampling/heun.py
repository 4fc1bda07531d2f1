"""Heun's method: average the slopes at both ends of an Euler step. Second order, two evaluations per step.

    x_e = x + (t' - t) velocity(x, t)
    x'  = x + (t' - t) (velocity(x, t) + velocity(x_e, t')) / 2

The step that ends at clean data (sigma = 0) stays an Euler step, as in Karras et al. 2022 (arXiv 2206.00364, algorithm
1): the network is never evaluated on data without noise, N steps to t = 0 cost 2 N - 1 evaluations, and one small step
of lower order leaves the second order of the whole untouched. `final="heun"` averages there too, at 2 N evaluations.
"""

import dataclasses
from typing import Any

import jax

from nova_jax.sampling import sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(sampler.Sampler):
    """Second order, two evaluations per step; one in the step that ends at sigma = 0, unless `final` is "heun"."""

    final: str = "euler"

    def __post_init__(self) -> None:
        if self.final not in ("euler", "heun"):
            raise ValueError(f'final is {self.final!r}; choose "euler" or "heun" for the step that ends at sigma = 0')

    @property
    def stages(self) -> int:
        """Two evaluations a step."""
        return 2

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step along the mean of the slopes at t and t_next."""
        slope = problem.velocity(x, t)
        x_euler = x + (t_next - t) * slope

        def correct() -> sampler.Step:
            slope_next = problem.velocity(x_euler, t_next)
            nfe = problem.evaluations(t) + problem.evaluations(t_next)
            return sampler.Step(x + (t_next - t) * (slope + slope_next) / 2, state, nfe)

        def stay() -> sampler.Step:
            return sampler.Step(x_euler, state, problem.evaluations(t))

        if self.final == "heun":
            return correct()
        return jax.lax.cond(problem.schedule.sigma(t_next) > 0, correct, stay)
