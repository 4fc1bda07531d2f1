"""Denoise and noise again: the steps of a consistency model.

    x0 = X(x, t, 0),      x' = alpha' x0 + sigma' z,      z ~ N(0, I)

One network evaluation a step. The noise of a step covers the error of the step before, so a few steps help; many add up
the errors of all jumps (Sabour et al. 2025, AYF, arXiv 2506.14603, section 3.1). Song et al. 2023, Consistency models,
arXiv 2303.01469, algorithm 1.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from nova_jax.sampling import flow_map, noise, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Renoise(sampler.Sampler):
    """Jump to the clean end, then noise to the next time. The condition must be a `Conditioning`."""

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """The answer's x0 with new noise."""
        x0, _ = flow_map.with_target(problem, jnp.zeros_like(t), x.shape[0]).denoise(x, t)
        z = noise.normal(noise.required(keys, self), x.shape[1:]).astype(x.dtype)
        x = problem.schedule.alpha(t_next) * x0 + problem.schedule.sigma(t_next) * z
        return sampler.Step(x, state, problem.evaluations(t))
