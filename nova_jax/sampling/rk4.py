"""The classical Runge-Kutta method: fourth order, four evaluations per step.

    k1 = velocity(x, t)                       k2 = velocity(x + h/2 k1, t + h/2)
    k3 = velocity(x + h/2 k2, t + h/2)        k4 = velocity(x + h k3, t + h)            h = t' - t
    x' = x + h (k1 + 2 k2 + 2 k3 + k4) / 6

Evaluates the network at the end of every step, clean data (t = 0) included. For smooth problems and reference paths.
"""

import dataclasses
from typing import Any

from nova_jax.sampling import sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class RK4(sampler.Sampler):
    """Fourth order, four evaluations per step."""

    @property
    def stages(self) -> int:
        """Four evaluations a step."""
        return 4

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step along a mean of four slopes."""
        h, middle = t_next - t, (t + t_next) / 2
        k1 = problem.velocity(x, t)
        k2 = problem.velocity(x + h / 2 * k1, middle)
        k3 = problem.velocity(x + h / 2 * k2, middle)
        k4 = problem.velocity(x + h * k3, t_next)
        nfe = problem.evaluations(t) + 2 * problem.evaluations(middle) + problem.evaluations(t_next)
        return sampler.Step(x + h * (k1 + 2 * k2 + 2 * k3 + k4) / 6, state, nfe)
