"""Learned times: gradients through every step of the solver."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from nova_jax.sampling import sampler as samplers
from nova_jax.sampling import time_grids
from nova_jax.sampling.fitted import program
from nova_jax.sampling.fitted.grid import FittedGrid
from nova_jax.sampling.fitted.program import DEFAULTS, FitSettings
from nova_jax.types import Keys, Samples, Time

SHORTEST = 1e-4  # step of a learned grid


def fit_grid(
    problem: samplers.Problem,
    noise: Float[Array, "n *dims"],
    *,
    sampler: samplers.Sampler,
    num_steps: int,
    reference: Float[Array, "n *dims"] | None = None,
    starts: Mapping[str, time_grids.Grid] | None = None,
    settings: FitSettings = DEFAULTS,
) -> FittedGrid:
    """Learns the times of `num_steps` steps of this solver by gradients through all of them.

    Args:
        problem: the denoiser, its schedule, and a condition with one row for each row of noise.
        noise: where the samples start, at t = 1; 100 to 500 of them. The last are held out.
        sampler: a deterministic solver with a fixed cost per step.
        num_steps: N.
        reference: where they should end, at t = 0; None computes it (`reference_ends`).
        starts: grids of `num_steps` steps by name, the best of which is where learning starts; None is `fixed_grids`.
        settings: how.

    Raises:
        ValueError: fewer than two samples, a start of another length, a reference or condition of another size.
    """
    fit = program.Fit(problem, noise, sampler, reference, settings)
    name, start = fit.best_of(starts or program.fixed_grids(num_steps, problem.schedule), num_steps)
    learned = _descend(fit, start)
    result = fit.report("gradient", learned, name, start)
    if result.rmse_held_out[1] < result.rmse_held_out[0]:
        return result
    return fit.report("fixed", start, name, start)


def _descend(fit: program.Fit, start: np.ndarray) -> np.ndarray:
    """Adam from this grid; the best grid on the way."""
    settings = fit.settings
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    optimizer = optax.adam(rate, b2=0.99)  # the gradient's size changes faster than 0.999 forgets
    solver = _Checkpointed(inner=fit.sampler)

    def loss(logits: Array, weights: Any, x: Array, cond: Any, target: Array) -> Array:
        problem = fit.bind(weights, cond)
        times = _times_from(logits)
        end = samplers.sample(problem.denoiser, x, sampler=solver, times=times, schedule=problem.schedule, cond=cond).x
        return jnp.log(jnp.mean(jnp.square(end - target)) + jnp.finfo(end.dtype).tiny)  # log: one rate for all sizes

    @jax.jit
    def update(logits: Array, memory: Any, weights: Any, x: Array, cond: Any, target: Array) -> tuple:
        gradient = jnp.nan_to_num(jax.grad(loss)(logits, weights, x, cond, target), posinf=0.0, neginf=0.0)
        change, memory = optimizer.update(gradient, memory)
        return optax.apply_updates(logits, change), memory

    random = np.random.default_rng(settings.seed)
    logits = jnp.asarray(_logits_from(start), fit.noise.dtype)
    memory = optimizer.init(logits)
    best, best_error = start, fit.rmse(start, fit.fitted)
    for step in range(settings.steps):
        chosen = np.resize(random.permutation(fit.fitted), fit.batch_size)
        logits, memory = update(logits, memory, fit.weights, *fit.rows(chosen), fit.reference[chosen])
        if (step + 1) % settings.evaluate_every == 0 or step + 1 == settings.steps:
            grid = np.asarray(_times_from(logits))
            error = fit.rmse(grid, fit.fitted)
            if error < best_error:
                best, best_error = grid, error
    return best


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Checkpointed(samplers.Sampler):
    """A solver whose steps are computed again in the backward pass instead of stored."""

    inner: samplers.Sampler

    def init(self, problem: samplers.Problem, x: Samples, times: Float[Array, " n"]) -> Any:
        return self.inner.init(problem, x, times)

    def step(
        self, problem: samplers.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys
    ) -> samplers.Step:
        def step(x: Array, t: Array, t_next: Array, state: Any) -> samplers.Step:
            return self.inner.step(problem, x, t, t_next, state, keys)

        return jax.checkpoint(step, prevent_cse=False)(x, t, t_next, state)


def _times_from(logits: Float[Array, " n"]) -> Float[Array, " n+1"]:
    """Falling times from 1 to 0; summed from the data end, where they are small and must be exact."""
    steps = SHORTEST + (1 - SHORTEST * logits.shape[0]) * jax.nn.softmax(logits)
    inner = jnp.cumsum(steps[::-1])[::-1][1:]
    return jnp.concatenate([jnp.ones(1, inner.dtype), inner, jnp.zeros(1, inner.dtype)])


def _logits_from(times: np.ndarray) -> np.ndarray:
    """The logits of these times, or of the nearest times without a step below the shortest."""
    return np.log(np.maximum(-np.diff(times) - SHORTEST, 0.1 * SHORTEST))
