"""Euler's method: follow the slope at the start of the step. First order, one evaluation per step.

    x' = x + (t' - t) velocity(x, t)

For rectified flow this is DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 with eta = 0) and first-order DPM-Solver++.
"""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Key

from nova_jax.sampling import sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(sampler.Sampler):
    """First order, one evaluation per step."""

    def init(self, problem: sampler.Problem, x: Float[Array, "b *dims"], times: Float[Array, " n"]) -> Any:
        """Nothing to remember."""
        return ()

    def step(
        self,
        problem: sampler.Problem,
        x: Float[Array, "b *dims"],
        t: Float[Array, ""],
        t_next: Float[Array, ""],
        state: Any,
        keys: Key[Array, " b"] | None,
    ) -> sampler.Step:
        """One step along the slope at t."""
        return sampler.Step(x + (t_next - t) * problem.velocity(x, t), state, problem.evaluations(t))
