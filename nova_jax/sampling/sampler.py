"""The loop that takes x from times[0] to times[-1], and the interface of its solvers.

    for t, t_next in pairs(times):   x, state, nfe += sampler.step(problem, x, t, t_next, state, key)

- The grid is data: N + 1 times, usually falling from 1 to 0. A repeated time is no step and costs nothing, so grids
  padded to one length (`time_grids.pad`) run every number of steps through one compiled program, and x can be
  differentiated with respect to the grid. A rising grid runs the flow backwards, from data to noise.
- A solver sees a `Problem`: the denoiser with its condition, its cost and the schedule. It carries any state it likes
  from step to step (a multistep history, an error estimate) and reports the evaluations it spent as data, so a solver
  may also step adaptively between two times of the grid.
- Randomness belongs to the sample: a stochastic solver gets one key per sample and step.

A solver is a frozen dataclass in a file of its own, which opens with its update.
"""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Float, Int, Key

from nova_jax.diffusion import denoiser as denoisers
from nova_jax.diffusion import schedules
from nova_jax.sampling import noise, time_grids
from nova_jax.types import Denoised, Denoiser, Keys, Sampled, Samples, Time


@dataclasses.dataclass(frozen=True)
class Problem:
    """What a solver solves: dx/dt = alpha'(t) x0 + sigma'(t) eps, with (x0, eps) the denoiser's answer at (x, t)."""

    denoiser: Denoiser
    cond: Any
    schedule: schedules.Schedule

    def denoise(self, x: Samples, t: Time) -> Denoised:
        """The denoiser's answer for the whole batch at one time."""
        return self.denoiser(x, jnp.broadcast_to(t, x.shape[:1]), self.cond)

    def velocity(self, x: Samples, t: Time) -> Samples:
        """The slope dx/dt of the probability flow."""
        x0, eps = self.denoise(x, t)
        return self.schedule.d_alpha(t) * x0 + self.schedule.d_sigma(t) * eps

    def evaluations(self, t: Time) -> Int[Array, ""]:
        """What one call of `denoise` or `velocity` at time t costs."""
        return denoisers.evaluations(self.denoiser, t)


class Step(NamedTuple):
    """Where a step arrives, what the solver remembers, and the network evaluations it spent on each sample."""

    x: Samples
    state: Any
    nfe: Int[Array, ""]


class Sampler(abc.ABC):
    """A solver: one step of it, and what it carries between steps."""

    @property
    def min_steps(self) -> int:
        """The steps it takes to reach the order: fewer run, but at a lower one. More than 1 for multistep solvers."""
        return 1

    @property
    def stages(self) -> int:
        """Evaluations of a step, as a rule; what sampling really spent is in its result."""
        return 1

    def init(self, problem: Problem, x: Samples, times: Float[Array, " n"]) -> Any:
        """The state before the first step: any tree of arrays whose structure and shapes `step` keeps; here none."""
        del problem, x, times
        return ()

    @abc.abstractmethod
    def step(self, problem: Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> Step:
        """Moves x from t to t_next. `keys`: one per sample, new in every step, or None when `sample` got none."""


def sample(
    denoiser: Denoiser,
    x: Samples,
    *,
    sampler: Sampler,
    times: time_grids.Grid,
    schedule: schedules.Schedule,
    cond: Any = None,
    key: Key[Array, "..."] | None = None,
) -> Sampled:
    """Solves for x from times[0], where the given one lies, to times[-1].

    Made to run inside `jit`; called outside, it compiles again each time.

    Args:
        denoiser: called with x, one time per sample, and `cond`.
        x: usually `noise.initial_noise(...)`, of any shape with the batch first.
        sampler: how to step.
        times: N + 1 falling numbers in [0, 1]; see `time_grids`.
        schedule: that of the denoiser.
        cond: handed to the denoiser.
        key: for stochastic samplers; one key, or one per sample.

    Raises:
        ValueError: the times are no monotone list of at least two numbers in [0, 1].
    """
    start, advance, pairs = _setup(denoiser, x, sampler, times, schedule, cond, key)
    (x, _, nfe), _ = jax.lax.scan(lambda carry, pair: (advance(carry, pair), None), start, pairs)
    return Sampled(x=x, nfe=nfe)


def sample_trajectory(
    denoiser: Denoiser,
    x: Samples,
    *,
    sampler: Sampler,
    times: time_grids.Grid,
    schedule: schedules.Schedule,
    cond: Any = None,
    key: Key[Array, "..."] | None = None,
) -> Float[Array, "n b *dims"]:
    """Like `sample`, but returns x at every time of the grid, the start included."""
    start, advance, pairs = _setup(denoiser, x, sampler, times, schedule, cond, key)

    def body(carry: tuple, pair: tuple) -> tuple[tuple, Array]:
        carry = advance(carry, pair)
        return carry, carry[0]

    _, states = jax.lax.scan(body, start, pairs)
    return jnp.concatenate([start[0][None], states])


def check_finite(
    denoiser: Denoiser,
    x: Samples,
    *,
    sampler: Sampler,
    times: time_grids.Grid,
    schedule: schedules.Schedule,
    cond: Any = None,
    key: Key[Array, "..."] | None = None,
) -> None:
    """Repeats `sample` and looks at every step, to find where it went wrong when it has ended in NaN or infinity.

    Raises:
        FloatingPointError: the sampler, the first step after which x is not finite, and its times.
    """

    @jax.jit
    def is_finite(x: Array, grid: Array) -> Array:
        path = sample_trajectory(denoiser, x, sampler=sampler, times=grid, schedule=schedule, cond=cond, key=key)
        return jnp.all(jnp.isfinite(path), axis=tuple(range(2, path.ndim)))

    grid = np.asarray(times)
    finite = np.asarray(is_finite(x, jnp.asarray(grid)))
    if finite.all():
        return
    step = int(np.flatnonzero(~finite.all(axis=1))[0])
    what = f"sample {int(np.flatnonzero(~finite[step])[0])} of {finite.shape[1]} is not finite"
    if step == 0:
        raise FloatingPointError(f"{what} before the first step, at t = {grid[0]:g}")
    raise FloatingPointError(
        f"{sampler}: {what} after step {step} of {len(grid) - 1}, from t = {grid[step - 1]:g} to {grid[step]:g}"
    )


def _setup(
    denoiser: Denoiser,
    x: Array,
    sampler: Sampler,
    times: time_grids.Grid,
    schedule: schedules.Schedule,
    cond: Any,
    key: Key[Array, "..."] | None,
) -> tuple[Any, Any, Any]:
    """The carry (x, state, nfe) at times[0], the function that advances it, and what it advances over."""
    _check_times(times)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    x, grid = x.astype(dtype), jnp.asarray(times, dtype)
    problem = Problem(denoiser, cond, schedule)
    keys = None if key is None else noise.keys_for_batch(key, x.shape[0])

    def advance(carry: tuple, pair: tuple) -> tuple:
        index, t, t_next = pair

        def move(carry: tuple) -> tuple:
            x, state, nfe = carry
            step_keys = None if keys is None else noise.fold_in(keys, index + 1)
            x, state, spent = sampler.step(problem, x, t, t_next, state, step_keys)
            return x, state, nfe + spent

        return jax.lax.cond(t_next == t, lambda carry: carry, move, carry)

    start = (x, sampler.init(problem, x, grid), jnp.int32(0))
    return start, advance, (jnp.arange(len(grid) - 1), grid[:-1], grid[1:])


def _check_times(times: time_grids.Grid) -> None:
    """Refuses times that are no monotone grid in [0, 1]; of traced ones only the shape is checked."""
    if np.ndim(times) != 1 or np.size(times) < 2:
        raise ValueError(f"times must be a list of N + 1 >= 2 numbers, got shape {np.shape(times)}")
    if isinstance(times, core.Tracer):
        return
    concrete = np.asarray(times)
    steps = np.diff(concrete)
    if not (np.all(steps <= 0) or np.all(steps >= 0)) or concrete.min() < 0 or concrete.max() > 1:
        raise ValueError(f"times must fall from noise (1) to data (0) within [0, 1], got {concrete}")
