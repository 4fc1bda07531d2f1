"""Euler's method: follow the slope at the start of the step. First order, one evaluation per step.

    x' = x + (t' - t) velocity(x, t)

For rectified flow this is DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 with eta = 0) and first-order DPM-Solver++.
"""

import dataclasses
from typing import Any

from nova_jax.sampling import sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(sampler.Sampler):
    """First order, one evaluation per step."""

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """One step along the slope at t."""
        return sampler.Step(x + (t_next - t) * problem.velocity(x, t), state, problem.evaluations(t))
