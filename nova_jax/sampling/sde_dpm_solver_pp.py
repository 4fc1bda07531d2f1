"""SDE-DPM-Solver++: DPM-Solver++ for the diffusion SDE, with fresh noise in every step (arXiv 2211.01095, section 5).

    x' = alpha' (1 - e^-2h) (x0 + w D_1) + (sigma'/sigma) e^-h x + sigma' sqrt(1 - e^-2h) z,     z ~ N(0, I)

    order 1                 w = 0: DDPM's ancestral step, DDIM with eta = 1
    order 2, "midpoint"     w = 1 / 2
    order 2, "heun"         w = 1 / (1 - e^-2h) - 1 / (2h)          integrates the line through two answers exactly

D_1 is the divided difference of x0 over the last two steps in lambda = log(alpha / sigma), h the step in lambda. One
evaluation per step; first order in the first step and in the one to sigma = 0.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.sampling import exponential, multistep, noise, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class SDEDPMSolverPP(sampler.Sampler):
    """Multistep SDE-DPM-Solver++ of order 1 or 2; stochastic, one evaluation per step."""

    order: int = 2
    variant: str = "midpoint"
    VARIANTS: ClassVar[tuple[str, ...]] = ("midpoint", "heun")

    def __post_init__(self) -> None:
        if self.order not in (1, 2):
            raise ValueError(f"order is {self.order}; SDE-DPM-Solver++ has orders 1 and 2")
        if self.variant not in self.VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; choose one of {', '.join(self.VARIANTS)}")

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
        """One step with fresh noise."""
        keys = noise.required(keys, self)
        x0, eps = problem.denoise(x, t)
        place = exponential.half_logsnr(problem.schedule, t)
        h = exponential.half_logsnr(problem.schedule, t_next) - place
        nodes = state.nodes(place, h)
        _, differences = multistep.differences(x0, nodes, state.values, jnp.isfinite(nodes))
        share = -jnp.expm1(-2 * h)
        finite = jnp.where(jnp.isfinite(h), h, 1)
        weight = share / 2 if self.variant == "midpoint" else 1 + jnp.expm1(-2 * finite) / (2 * finite)
        extrapolated = sum((weight * d for d in differences), jnp.zeros_like(x))

        alpha, sigma = problem.schedule.alpha(t_next), problem.schedule.sigma(t_next)
        z = noise.normal(keys, x.shape[1:]).astype(x.dtype)
        mean = alpha * x0 + sigma * jnp.exp(-h) * eps + alpha * extrapolated
        return sampler.Step(mean + sigma * noise.root(share) * z, state.push(place, x0), problem.evaluations(t))
