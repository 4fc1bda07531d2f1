"""UniPC: a multistep predictor, corrected by the evaluation that the next step needs anyway (arXiv 2302.04867).

    predict    x'  = alpha' x0 + sigma' eps + alpha' sum_k w_k D_k       over the last p answers: order p
    correct    x'  = the same with the answer at x' as one more node     before the next step starts: order p + 1

The answer at the predicted x' is used for the correction and for the next prediction, so a step costs one evaluation;
the last x stays as predicted. The weights integrate the polynomial through the answers exactly, except where a single
difference is used (the predictor of order 2, the corrector of order 1):  w_1 = B(h) / 2  with

    "bh1"   B(h) = h              "bh2"   B(h) = 1 - e^-h

UniP-2 with "bh2" is DPM-Solver++(2M). A step to sigma = 0 is of first order. A step from pure noise (lambda = -inf) is
corrected with the limit of B: 1 for "bh2", none for "bh1", whose limit is infinite.
"""

import dataclasses
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nova_jax.sampling import exponential, multistep, sampler
from nova_jax.types import Keys, Samples, Time


class State(NamedTuple):
    """Earlier answers x0; the previous step: what it predicted at first order, its length and order; the grid."""

    history: multistep.History
    base: Samples
    h: Float[Array, ""]
    order: Int[Array, ""]
    times: Float[Array, " n"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC(sampler.Sampler):
    """Unified predictor-corrector of order 1, 2 or 3, one evaluation per step.

    Attributes:
        order: Of the predictor; the corrector adds one.
        variant: B(h) above.
        corrector: False: the predictor alone (UniP).
        lower_order_final: Whether the order falls to the number of steps left on grids that end at sigma = 0.
    """

    order: int = 2
    variant: str = "bh2"
    corrector: bool = True
    lower_order_final: bool = True
    VARIANTS: ClassVar[tuple[str, ...]] = ("bh1", "bh2")

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order is {self.order}; UniPC has orders 1, 2 and 3")
        if self.variant not in self.VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; choose one of {', '.join(self.VARIANTS)}")

    @property
    def min_steps(self) -> int:
        """The steps it takes to reach the order."""
        return self.order

    def init(self, problem: sampler.Problem, x: Samples, times: Float[Array, " n"]) -> State:
        """No answers yet."""
        none = jnp.zeros((), x.dtype)
        return State(multistep.empty(self.order, x), jnp.zeros_like(x), none, jnp.int32(0), times)

    def step(
        self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: State, keys: Keys
    ) -> sampler.Step:
        """Corrects x, then predicts the next one."""
        schedule = problem.schedule
        history = state.history
        x0, eps = denoised = problem.denoise(x, t)
        place = exponential.half_logsnr(schedule, t)
        if self.corrector:
            corrected = state.base + schedule.alpha(t) * self._correct(x0, place, state)
            sigma = jnp.where(schedule.sigma(t) > 0, schedule.sigma(t), 1)
            denoised = denoised._replace(eps=eps + jnp.where(history.known > 0, corrected - x, 0) / sigma)

        h = exponential.half_logsnr(schedule, t_next) - place
        order = jnp.minimum(self.order, history.known + 1)
        if self.lower_order_final:
            order = jnp.minimum(order, multistep.steps_left(state.times, t, schedule))
        nodes = history.nodes(place, h)[:-1]
        used = jnp.isfinite(nodes) & (jnp.arange(self.order - 1) < order - 1)
        base = exponential.first_order(denoised, schedule, t_next)
        x = base + schedule.alpha(t_next) * self._integrate(h, x0, nodes, history.values[:-1], used, order == 2)
        state = State(history.push(place, x0), base, h, order, state.times)
        return sampler.Step(x, state, problem.evaluations(t))

    def _correct(self, x0: Samples, place: Float[Array, ""], state: State) -> Samples:
        """What the previous step should have added to its first order, now that the answer at its end is known."""
        history = state.history
        start, before = history.place[0], history._replace(place=history.place[1:], values=history.values[1:])
        nodes = jnp.concatenate([jnp.ones(1, x0.dtype), before.nodes(start, state.h)])
        values = jnp.concatenate([x0[None], before.values])
        used = jnp.isfinite(nodes) & (jnp.arange(self.order) < state.order)
        if self.variant == "bh1":
            used &= jnp.isfinite(state.h)
        return self._integrate(state.h, history.values[0], nodes, values, used, state.order == 1)

    def _integrate(
        self,
        h: Float[Array, ""],
        start: Samples,
        nodes: Float[Array, " n"],
        values: Float[Array, "n b *dims"],
        used: Array,
        halved: Array,
    ) -> Samples:
        """The integral of the polynomial through the used nodes, less its start; `halved`: one node, weight B / 2."""
        nodes, differences = multistep.differences(start, nodes, values, used)
        weights = multistep.weights(nodes, exponential.moments(h))
        b = jnp.where(jnp.isfinite(h), h, 0) if self.variant == "bh1" else -jnp.expm1(-h)
        if weights:
            weights[0] = jnp.where(halved, b / 2, weights[0])
        return sum((w * d for w, d in zip(weights, differences, strict=True)), jnp.zeros_like(start))
