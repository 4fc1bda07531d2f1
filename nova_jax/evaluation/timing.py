"""How long one network evaluation takes, measured so that a cell of a benchmark can be compared with it.

    overhead = seconds of a walk / (nfe x seconds of one evaluation)

A single call is no fair measure: it pays for its dispatch, and on a shared machine seconds drift by more than what is
to be seen. So one evaluation is a part of a walk, compiled like those that it is compared with, whose solver does
nothing (`Stay`); and the two are timed in turn, so that a machine that grows slower slows both.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from nova_jax import sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stay(sampling.Sampler):
    """A step that asks the denoiser once and stays where it is: alpha x0 + sigma eps is x again."""

    def init(self, problem: sampling.Problem, x: Float[Array, "b *dims"], times: Float[Array, " n"]) -> tuple[()]:
        """Nothing to remember."""
        return ()

    def step(
        self,
        problem: sampling.Problem,
        x: Float[Array, "b *dims"],
        t: Float[Array, ""],
        t_next: Float[Array, ""],
        state: tuple[()],
        keys: Key[Array, " b"] | None,
    ) -> sampling.Step:
        """One evaluation, whose answer is used, so that the compiler cannot leave it out."""
        x0, eps = problem.denoise(x, t)
        stayed = problem.schedule.alpha(t) * x0 + problem.schedule.sigma(t) * eps
        return sampling.Step(stayed, state, problem.evaluations(t))


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """How long a call takes until its arrays are there, and its result."""
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and range."""
    return {"median": float(np.median(values)), "low": min(values), "high": max(values)}
