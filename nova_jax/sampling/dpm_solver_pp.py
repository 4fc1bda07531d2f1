"""DPM-Solver++, multistep: extrapolate x0 in lambda = log(alpha / sigma) through the last answers (arXiv 2211.01095).

    x' = alpha' x0 + sigma' eps + alpha' (w_1 D_1 + w_2 D_2)          D_k: divided differences of x0, see `multistep`

    order 1                 nothing: DDIM
    order 2, "midpoint"     w_1 = (1 - e^-h) / 2                      algorithm 2 of the paper, and the usual choice
    order 2, "heun"         w_1 = h phi_2(-h)                         integrates the line through two answers exactly
    order 3, either         w_1 = h phi_2(-h),  w_2 = h phi_3(-h) - r_1 w_1
    order 3, "corrected"    w_1 = h phi_2(-h),  w_2 = 2 h phi_3(-h) - r_1 w_1

The third order as published leaves out the factor 2 of its last term, and converges with second order; "corrected"
integrates the parabola through three answers exactly and converges with third. Both are kept: one to compare with other
code, one to use. One evaluation per step. Orders are lower while there is no history, and in the step to sigma = 0.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.sampling import exponential, multistep, sampler
from nova_jax.types import Keys, Samples, Time


class State(NamedTuple):
    """Earlier answers x0, and the whole grid."""

    history: multistep.History
    times: Float[Array, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMSolverPP(sampler.Sampler):
    """Multistep DPM-Solver++ of order 1, 2 or 3, one evaluation per step.

    Attributes:
        order: Of the extrapolation.
        variant: Which weights; see above.
        lower_order_final: Whether the order falls to the number of steps left on grids that end at sigma = 0.
    """

    order: int = 2
    variant: str = "midpoint"
    lower_order_final: bool = False
    VARIANTS: ClassVar[tuple[str, ...]] = ("midpoint", "heun", "corrected")

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order is {self.order}; DPM-Solver++ has orders 1, 2 and 3")
        if self.variant not in self.VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; choose one of {', '.join(self.VARIANTS)}")
        if self.variant == "corrected" and self.order != 3:
            raise ValueError(f'variant "corrected" is of order 3, got order {self.order}; use "midpoint" or "heun"')

    @property
    def min_steps(self) -> int:
        """The steps it takes to reach the order."""
        return self.order

    def init(self, problem: sampler.Problem, x: Samples, times: Float[Array, " n"]) -> State:
        """No answers yet."""
        return State(multistep.empty(self.order - 1, x), times)

    def step(
        self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: State, keys: Keys
    ) -> sampler.Step:
        """One step with what is known at t and before."""
        denoised = problem.denoise(x, t)
        place = exponential.half_logsnr(problem.schedule, t)
        h = exponential.half_logsnr(problem.schedule, t_next) - place
        history, times = state
        order = jnp.minimum(self.order, history.known + 1)
        if self.lower_order_final:
            order = jnp.minimum(order, multistep.steps_left(times, t, problem.schedule))

        nodes = history.nodes(place, h)
        used = jnp.isfinite(nodes) & (jnp.arange(self.order - 1) < order - 1)
        nodes, differences = multistep.differences(denoised.x0, nodes, history.values, used)
        first, second, third = exponential.moments(h)
        if self.variant != "corrected":
            second = second / 2
        weights = multistep.weights(nodes, (first, second, third))
        if weights and self.variant == "midpoint":
            weights[0] = jnp.where(jnp.sum(used) == 1, -jnp.expm1(-h) / 2, weights[0])
        extrapolated = sum((w * d for w, d in zip(weights, differences, strict=True)), jnp.zeros_like(x))
        x = exponential.first_order(denoised, problem.schedule, t_next)
        x = x + problem.schedule.alpha(t_next) * extrapolated
        return sampler.Step(x, State(history.push(place, denoised.x0), times), problem.evaluations(t))
