"""DEIS: extrapolate eps through the last answers and integrate exactly (Zhang & Chen 2022, arXiv 2204.13902).

    x' = alpha' x0 + sigma' eps - sigma' sum_k w_k D_k          D_k: divided differences of eps, see `multistep`

with the polynomial in log(sigma / alpha) = -lambda, the paper's multistep scheme (tAB) in that variable: its integrals
have a closed form for every schedule, the moments of `exponential` (2). The counterpart of DPM-Solver++, which
extrapolates x0. One evaluation per step; orders are lower while there is no history, and in the step to sigma = 0.
"""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.sampling import exponential, multistep, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class DEIS(sampler.Sampler):
    """Exponential Adams-Bashforth on eps, of order 1, 2 or 3, one evaluation per step."""

    order: int = 3

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3):
            raise ValueError(f"order is {self.order}; DEIS has orders 1, 2 and 3")

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
        """One step with what is known at t and before."""
        denoised = problem.denoise(x, t)
        place = exponential.half_logsnr(problem.schedule, t)
        h = exponential.half_logsnr(problem.schedule, t_next) - place
        nodes = state.nodes(place, h)
        nodes, differences = multistep.differences(denoised.eps, nodes, state.values, jnp.isfinite(nodes))
        weights = multistep.weights(nodes, exponential.moments(h, sign=1))
        extrapolated = sum((w * d for w, d in zip(weights, differences, strict=True)), jnp.zeros_like(x))
        x = exponential.first_order(denoised, problem.schedule, t_next)
        x = x - problem.schedule.sigma(t_next) * extrapolated
        return sampler.Step(x, state.push(place, denoised.eps), problem.evaluations(t))
