"""How long one network evaluation takes, measured so that a cell of a benchmark can be compared with it.

    overhead = seconds of sampling / (nfe x seconds of one evaluation)

A single call is no fair measure: it pays for its dispatch, and on a shared machine seconds drift by more than what is
to be seen. So one evaluation is a step of sampling, compiled like what it is compared with, whose solver does nothing
(`Stay`); and the two are timed in turn, so that a machine that grows slower slows both.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from nova_jax import sampling
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stay(sampling.Sampler):
    """A step that evaluates the denoiser once and stays where it is: alpha x0 + sigma eps is x again."""

    def step(
        self, problem: sampling.Problem, x: Samples, t: Time, t_next: Time, state: tuple[()], keys: Keys
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
