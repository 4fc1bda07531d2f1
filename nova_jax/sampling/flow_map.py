"""Steps of a flow map: each goes straight to the next time, which is an input of the network.

    x' = X(x, t, t') = x - (t - t') u(x, t, t')

For a student that has learnt average velocities (`nova_jax.distillation`): one evaluation a step, and more steps do not
make it worse. For a network that does not read `cond.r` this is Euler's method. Geng et al. 2025, MeanFlow,
arXiv 2505.13447, algorithm 2.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from nova_jax.sampling import sampler
from nova_jax.types import Conditioning, Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMapSteps(sampler.Sampler):
    """One jump a step, without noise. The condition must be a `Conditioning`, whose `r` it sets."""

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """Along the line through x and the answer at (t, t_next)."""
        del keys
        x0, eps = with_target(problem, t_next, x.shape[0]).denoise(x, t)
        x = problem.schedule.alpha(t_next) * x0 + problem.schedule.sigma(t_next) * eps
        return sampler.Step(x, state, problem.evaluations(t))


def with_target(problem: sampler.Problem, r: Time, batch_size: int) -> sampler.Problem:
    """The problem with r as the target time of its network.

    Raises:
        TypeError: its condition has no place for r.
    """
    if not isinstance(problem.cond, Conditioning):
        raise TypeError(
            f"a flow map reads its target time from cond.r: pass cond=Conditioning(...), not "
            f"{type(problem.cond).__name__}"
        )
    return dataclasses.replace(problem, cond=problem.cond._replace(r=jnp.broadcast_to(r, (batch_size,))))
