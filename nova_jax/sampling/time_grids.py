"""Time grids: the N + 1 falling times of an N-step sampler. Any array is a grid; these functions make some.

    uniform    equal steps in t
    shifted    equal steps, moved towards noise by the resolution shift (`schedules.shift_time`)
    logsnr     equal steps in log-SNR                       Lu et al. 2022, DPM-Solver (arXiv 2206.00927)
    karras     equal steps in (sigma / alpha)^(1 / rho)      Karras et al. 2022 (arXiv 2206.00364, eq. 5)

Log-SNR is infinite at both ends, so the last two start at a finite noise level, which is then moved to exactly 1 (x is
pure noise there), and go to exactly 0 in a last step.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from nova_jax.diffusion import schedules

Grid = ArrayLike | Sequence[float | int]


def uniform(num_steps: int) -> Float[Array, " n"]:
    """Equal steps from 1 to 0."""
    _check(num_steps)
    return jnp.linspace(1.0, 0.0, num_steps + 1)


def shifted(num_steps: int, shift: float) -> Float[Array, " n"]:
    """Equal steps after a resolution shift: with shift > 1, more of them at high noise, where layout is decided."""
    return schedules.shift_time(uniform(num_steps), shift)


def logsnr(
    num_steps: int, schedule: schedules.Schedule, *, start: float = 0.999, stop: float = 0.001
) -> Float[Array, " n"]:
    """Equal steps in log-SNR between the times `start` and `stop`, then one step to 0."""
    _check(num_steps)
    first, last = schedule.logsnr(jnp.asarray([start, stop]))
    return _close(schedule.inverse_logsnr(jnp.linspace(first, last, num_steps)))


def karras(
    num_steps: int, schedule: schedules.Schedule, *, rho: float = 7.0, start: float = 0.999, stop: float = 0.001
) -> Float[Array, " n"]:
    """Equal steps in (sigma / alpha)^(1 / rho) between the times `start` and `stop`, then one step to 0."""
    _check(num_steps)
    first, last = jnp.exp(-schedule.logsnr(jnp.asarray([start, stop])) / 2)
    sigma = jnp.linspace(first ** (1 / rho), last ** (1 / rho), num_steps) ** rho
    return _close(schedule.inverse_logsnr(-2 * jnp.log(sigma)))


def pad(times: Grid, num_steps: int) -> Float[Array, " n"]:
    """Repeats the last time until the grid has room for `num_steps`: the samplers skip these steps and compile once.

    Raises:
        ValueError: the grid already has more steps.
    """
    times = jnp.asarray(times)
    if len(times) > num_steps + 1:
        raise ValueError(f"a grid of {len(times) - 1} steps does not fit into {num_steps}")
    return jnp.concatenate([times, jnp.full(num_steps + 1 - len(times), times[-1])])


def _close(times: Float[Array, " n"]) -> Float[Array, " n+1"]:
    return jnp.concatenate([times.at[0].set(1.0), jnp.zeros(1)])


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"a grid needs at least one step, got num_steps={num_steps}")
