"""Times from local errors: measured step by step and chained, or estimated from how the slope changes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nova_jax.sampling import heun
from nova_jax.sampling import sampler as samplers
from nova_jax.sampling.fitted import program
from nova_jax.sampling.fitted.grid import FittedGrid
from nova_jax.sampling.fitted.program import DEFAULTS, FitSettings


def dynamic_programming_grid(
    problem: samplers.Problem,
    noise: Float[Array, "n *dims"],
    *,
    sampler: samplers.Sampler,
    num_steps: int,
    candidates: int = 40,
    reference: Float[Array, "n *dims"] | None = None,
    settings: FitSettings = DEFAULTS,
) -> FittedGrid:
    """The chain of `num_steps` steps between candidate times with the least sum of local errors.

    A step's local error is measured from the reference path, on the first `settings.batch_size` samples, after one step
    between neighbouring candidates that fills the memory of a multistep solver. Costs candidates^2 / 2 steps of the
    solver, twice that with a memory.

    Raises:
        ValueError: more steps than candidates; see `fit_grid` for the rest.
    """
    fit = program.Fit(problem, noise, sampler, reference, settings)
    times = program.even_in_time_and_logsnr(candidates, problem.schedule)
    if not 1 <= num_steps < len(times):
        raise ValueError(f"num_steps must lie between 1 and {len(times) - 1}, the candidates, got {num_steps}")
    grid = times[_shortest_chain(_local_errors(fit, times), num_steps)]
    name, start = fit.best_of(program.fixed_grids(num_steps, problem.schedule), num_steps)
    return fit.report("dynamic programming", grid, name, start)


def curvature_grid(
    problem: samplers.Problem,
    noise: Float[Array, "n *dims"],
    *,
    sampler: samplers.Sampler,
    num_steps: int,
    order: int = 1,
    reference: Float[Array, "n *dims"] | None = None,
    settings: FitSettings = DEFAULTS,
) -> FittedGrid:
    """Times between which a solver of this order makes local errors of equal size.

    From one pass of 128 steps with the first `settings.batch_size` samples; the solver is only needed to say how good
    the grid is.

    Raises:
        ValueError: an order other than 1, 2 or 3; see `fit_grid` for the rest.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"the order must be 1, 2 or 3, got {order}")
    fit = program.Fit(problem, noise, sampler, reference, settings)
    times = np.linspace(1.0, 0.0, 129)
    change = _slopes(fit, times)
    for _ in range(order):
        change = np.gradient(change, times[:-1], axis=0)
    density = np.mean(np.square(change), axis=tuple(range(1, change.ndim))) ** (0.5 / (order + 1))
    density = density + 1e-3 * density.mean() + np.finfo(density.dtype).tiny
    shares = np.concatenate([[0.0], np.cumsum(density)])  # density[i] is that of the step from times[i] on
    grid = np.interp(np.linspace(0, shares[-1], num_steps + 1), shares, times)
    grid[0], grid[-1] = 1.0, 0.0
    name, start = fit.best_of(program.fixed_grids(num_steps, problem.schedule), num_steps)
    return fit.report("curvature", grid, name, start)


def _local_errors(fit: program.Fit, times: np.ndarray) -> np.ndarray:
    """What one step from times[i] to times[j], begun on the reference path, adds to the error at the end.

    The error at times[j], times how much the flow from there to the end stretches an error of this direction, taken
    from one step into times[j]. Infinite for i >= j.
    """
    count = len(times)
    first, second = np.triu_indices(count, 1)
    typical = max(count // 8, 1)

    @jax.jit
    def measure(weights: Any, x: Array, cond: Any, times: Array) -> tuple[Array, Array]:
        problem = fit.bind(weights, cond)
        path = _path(problem, x, times)
        fresh = fit.sampler.init(problem, x, times)

        def step(i: Array, j: Array, state: Any) -> samplers.Step:
            return fit.sampler.step(problem, path[i], times[i], times[j], state, None)

        def error(i: Array, j: Array) -> Array:
            state = fresh
            if jax.tree.leaves(fresh):
                state = jax.lax.cond(i > 0, lambda: step(i - 1, i, fresh).state, lambda: fresh)
            return step(i, j, state).x - path[j]

        def stretch(j: Array) -> Array:
            wrong = error(jnp.maximum(j - typical, 0), j)
            index = jnp.arange(count)
            kept = jnp.where(index < j, times[j], times)  # repeated times are no steps
            end = samplers.sample(
                problem.denoiser,
                path[j] + wrong,
                sampler=heun.Heun(),
                times=kept,
                schedule=problem.schedule,
                cond=cond,
            ).x
            return _rms(end - path[-1]) / (_rms(wrong) + jnp.finfo(x.dtype).tiny)

        stretches = jax.lax.map(stretch, jnp.arange(1, count - 1))
        return jax.lax.map(lambda pair: _rms(error(*pair)), (first, second)), stretches

    x, cond = fit.rows(fit.fitted_batch())
    measured, stretches = measure(fit.weights, x, cond, times.astype(x.dtype))
    errors = np.full((count, count), np.inf)
    errors[first, second] = np.asarray(measured) * np.array([0, *stretches, 1])[second]
    return np.where(np.isfinite(errors), errors, np.inf)


def _slopes(fit: program.Fit, times: np.ndarray) -> np.ndarray:
    """The velocity on the reference path at every time but the last, where there may be no noise to ask about."""

    @jax.jit
    def measure(weights: Any, x: Array, cond: Any, times: Array) -> Array:
        problem = fit.bind(weights, cond)
        path = _path(problem, x, times)
        return jax.lax.map(lambda at: problem.velocity(*at), (path[:-1], times[:-1]))

    x, cond = fit.rows(fit.fitted_batch())
    return np.asarray(measure(fit.weights, x, cond, times.astype(x.dtype)), np.float64)


def _path(problem: samplers.Problem, x: Array, times: Array) -> Array:
    """The reference path at these times, with four steps of Heun's method between two of them."""

    def advance(x: Array, pair: tuple[Array, Array]) -> tuple[Array, Array]:
        between = jnp.linspace(pair[0], pair[1], 5)
        x = samplers.sample(
            problem.denoiser, x, sampler=heun.Heun(), times=between, schedule=problem.schedule, cond=problem.cond
        ).x
        return x, x

    _, states = jax.lax.scan(advance, x, (times[:-1], times[1:]))
    return jnp.concatenate([x[None], states])


def _rms(x: Array) -> Array:
    return jnp.sqrt(jnp.mean(jnp.square(x)))


def _shortest_chain(errors: np.ndarray, num_steps: int) -> np.ndarray:
    """The indices 0 = i_0 < ... < i_N = last with the least sum of errors[i_k, i_(k+1)]."""
    best = errors[0]
    previous = []
    for _ in range(num_steps - 1):
        through = best[:, None] + errors
        previous.append(np.argmin(through, axis=0))
        best = np.min(through, axis=0)
    chain = [len(errors) - 1]
    for choice in reversed(previous):
        chain.append(int(choice[chain[-1]]))
    return np.array([0, *reversed(chain)])
