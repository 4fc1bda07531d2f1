"""Adams-Bashforth: extrapolate the slope through the last answers. Order 2 or 3, one evaluation per step.

    x' = x + (t' - t) (v + w_1 D_1 + w_2 D_2)          D_k: divided differences of the velocity, see `multistep`

with w_1 = 1/2 and w_2 = 1/3 - r_1/2, exact for steps of any lengths. Orders are lower while there is no history.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.sampling import multistep, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamsBashforth(sampler.Sampler):
    """Variable-step Adams-Bashforth of order 2 or 3, one evaluation per step."""

    order: int = 2

    def __post_init__(self) -> None:
        if self.order not in (2, 3):
            raise ValueError(f"order is {self.order}; Adams-Bashforth has orders 2 and 3 here (order 1 is Euler)")

    @property
    def min_steps(self) -> int:
        """The steps it takes to reach the order."""
        return self.order

    def init(self, problem: sampler.Problem, x: Samples, times: Float[Array, " n"]) -> multistep.History:
        """No answers yet."""
        return multistep.empty(self.order - 1, x)

    def step(
        self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: multistep.History, keys: Keys
    ) -> sampler.Step:
        """One step along the extrapolated slope."""
        slope = problem.velocity(x, t)
        nodes = state.nodes(t, t_next - t)
        nodes, differences = multistep.differences(slope, nodes, state.values, jnp.isfinite(nodes))
        weights = multistep.weights(nodes, [jnp.asarray(1 / k, t.dtype) for k in (2, 3)])
        extrapolated = sum((w * d for w, d in zip(weights, differences, strict=True)), slope)
        return sampler.Step(x + (t_next - t) * extrapolated, state.push(t, slope), problem.evaluations(t))
