"""Ralston's method: the two-stage method of second order with the least error bound. Two evaluations per step.

    x_s = x + 2/3 (t' - t) velocity(x, t)
    x'  = x + (t' - t) (velocity(x, t) + 3 velocity(x_s, t + 2/3 (t' - t))) / 4

(Ralston 1962, Math. Comp. 16.) The network is never evaluated on data without noise.
"""

import dataclasses
from typing import Any

from nova_jax.sampling import sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ralston(sampler.Sampler):
    """Second order, two evaluations per step."""

    @property
    def stages(self) -> int:
        """Two evaluations a step."""
        return 2

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step along a mean of the slopes at its start and at two thirds."""
        inside = t + (t_next - t) * 2 / 3
        slope = problem.velocity(x, t)
        slope_inside = problem.velocity(x + (inside - t) * slope, inside)
        x = x + (t_next - t) * (slope + 3 * slope_inside) / 4
        return sampler.Step(x, state, problem.evaluations(t) + problem.evaluations(inside))
