"""The midpoint method: the slope halfway along an Euler step. Second order, two evaluations per step.

    x_m = x + (t' - t)/2 velocity(x, t)
    x'  = x + (t' - t) velocity(x_m, (t + t')/2)

The network is never evaluated on data without noise.
"""

import dataclasses
from typing import Any

from nova_jax.sampling import sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Midpoint(sampler.Sampler):
    """Second order, two evaluations per step."""

    @property
    def stages(self) -> int:
        """Two evaluations a step."""
        return 2

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step along the slope in its middle."""
        middle = (t + t_next) / 2
        x_middle = x + (middle - t) * problem.velocity(x, t)
        x = x + (t_next - t) * problem.velocity(x_middle, middle)
        return sampler.Step(x, state, problem.evaluations(t) + problem.evaluations(middle))
