"""Steps of a flow map: each goes straight to the next time, which the network is told.

    x' = X(x, t, t') = x - (t - t') u(x, t, t')

For a student that has learnt average velocities (`nova_jax.distillation`): one evaluation a step, and more steps do not
make it worse. A network that does not read `cond.r` is sampled by Euler's method instead. Geng et al. 2025, MeanFlow,
arXiv 2505.13447, algorithm 2.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from nova_jax.sampling import sampler
from nova_jax.types import Conditioning


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMapSteps(sampler.Sampler):
    """One jump a step, without noise. The condition must be a `Conditioning`, whose `r` it sets."""

    def init(self, problem: sampler.Problem, x: Float[Array, "b *dims"], times: Float[Array, " n"]) -> tuple[()]:
        """Nothing to remember."""
        del x, times
        told(problem, jnp.zeros(()), 1)
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
        """Along the line through x and the answer at (t, t_next)."""
        del keys
        x0, eps = told(problem, t_next, x.shape[0]).denoise(x, t)
        x = problem.schedule.alpha(t_next) * x0 + problem.schedule.sigma(t_next) * eps
        return sampler.Step(x, state, problem.evaluations(t))


def told(problem: sampler.Problem, r: Float[Array, ""], batch_size: int) -> sampler.Problem:
    """The problem whose network is told to go to time r.

    Raises:
        TypeError: its condition has no place for r.
    """
    if not isinstance(problem.cond, Conditioning):
        raise TypeError(
            f"a flow map is told where to go by cond.r: pass cond=Conditioning(...), not {type(problem.cond).__name__}"
        )
    return dataclasses.replace(problem, cond=problem.cond._replace(r=jnp.broadcast_to(r, (batch_size,))))
