"""The midpoint method: the slope halfway along an Euler step. Second order, two evaluations per step.

    x_m = x + (t' - t)/2 velocity(x, t)
    x'  = x + (t' - t) velocity(x_m, (t + t')/2)

The network is never asked about data without noise.
"""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, Key

from nova_jax.sampling import sampler


@dataclasses.dataclass(frozen=True, kw_only=True)
class Midpoint(sampler.Sampler):
    """Second order, two evaluations per step."""

    @property
    def stages(self) -> int:
        """Two evaluations a step."""
        return 2

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
        """One step along the slope in its middle."""
        middle = (t + t_next) / 2
        x_middle = x + (middle - t) * problem.velocity(x, t)
        x = x + (t_next - t) * problem.velocity(x_middle, middle)
        return sampler.Step(x, state, problem.evaluations(t) + problem.evaluations(middle))
