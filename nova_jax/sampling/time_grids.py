"""Time grids: the N + 1 falling times of an N-step sampler. Any array is a grid; these functions make some.

    uniform          equal steps in t
    shifted          equal steps, moved towards noise by the resolution shift (`schedules.shift_time`)
    quadratic        t = u^2, u uniform: short steps near data      Song et al. 2020, DDIM (arXiv 2010.02502)
    cosine           t = cos(pi / 2 (1 - u)): short steps near noise
    uniform_angle    equal steps in arctan(sigma / (alpha std)): the best grid of Euler's method for Gaussian data
    logsnr           equal steps in log-SNR                         Lu et al. 2022, DPM-Solver (2206.00927)
    karras           equal steps in (sigma / alpha)^(1 / rho)       Karras et al. 2022 (2206.00364, eq. 5)
    from_list        times of your own, checked
    named            one of these by name ("shifted:3"), or a fitted grid by its file (`fitted`)

Log-SNR is infinite at both ends, so `logsnr` and `karras` start at a finite noise level, which is then moved to exactly
1 (x is pure noise there), and go to exactly 0 in a last step.

Why equal angles: an Euler step on data N(mean, std^2) turns (sigma, alpha std) by an angle and loses nothing but its
cosine; log cos is concave, so the loss is least when all angles are equal.
"""

import json
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
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


def quadratic(num_steps: int) -> Float[Array, " n"]:
    """The squares of equal steps: the last step is the shortest."""
    return uniform(num_steps) ** 2


def cosine(num_steps: int) -> Float[Array, " n"]:
    """A quarter of a cosine: the first step is the shortest."""
    _check(num_steps)
    return jnp.cos(jnp.linspace(0.0, math.pi / 2, num_steps + 1)).at[-1].set(0.0)


def uniform_angle(num_steps: int, schedule: schedules.Schedule, *, std: float | int = 1.0) -> Float[Array, " n"]:
    """Equal steps in the angle between signal and noise of data with this standard deviation.

    Raises:
        ValueError: a standard deviation that is not above 0.
    """
    _check(num_steps)
    if not std > 0:
        raise ValueError(f"the standard deviation of the data must be above 0, got {std}")
    widest = jnp.arctan(jnp.exp(-schedule.logsnr(jnp.ones(())) / 2) / std)  # a right angle if nothing is left of data
    inner = jnp.linspace(widest, 0.0, num_steps + 1)[1:-1]
    times = schedule.inverse_logsnr(-2 * jnp.log(std * jnp.tan(inner)))
    return jnp.concatenate([jnp.ones(1), times, jnp.zeros(1)])


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


def from_list(times: Sequence[float] | ArrayLike) -> Float[Array, " n"]:
    """The grid with exactly these times.

    Raises:
        ValueError: they do not fall from 1 to 0.
    """
    return jnp.asarray(check(times))


NAMES: Mapping[str, Callable[[int, schedules.Schedule, float | None], Float[Array, " n"]]] = {
    "uniform": lambda n, schedule, number: uniform(n),
    "shifted": lambda n, schedule, number: shifted(n, 3.0 if number is None else number),
    "quadratic": lambda n, schedule, number: quadratic(n),
    "cosine": lambda n, schedule, number: cosine(n),
    "uniform_angle": lambda n, schedule, number: uniform_angle(n, schedule, std=1.0 if number is None else number),
    "logsnr": lambda n, schedule, number: logsnr(n, schedule),
    "karras": lambda n, schedule, number: karras(n, schedule, rho=7.0 if number is None else number),
}
NUMBERS = {"shifted": "shift, 3", "uniform_angle": "std, 1", "karras": "rho, 7"}  # what follows the colon, its default


def named(name: str, num_steps: int, schedule: schedules.Schedule) -> Float[Array, " n"]:
    """The grid of this name with this many steps.

    Args:
        name: "uniform", "shifted:3", "quadratic", "cosine", "uniform_angle:0.5", "logsnr", "karras:7", or the path of a
            fitted grid's JSON file. `{num_steps}` in a path stands for the number of steps.
        num_steps: N, at least 1.
        schedule: that of the denoiser.

    Raises:
        ValueError: an unknown name (with a list of the known), a bad number after the colon, or a file that is missing,
            holds no grid, or holds one of another number of steps.
    """
    if name.endswith(".json"):
        return _from_file(pathlib.Path(name.replace("{num_steps}", str(num_steps))), num_steps)
    kind, colon, text = name.partition(":")
    if kind not in NAMES:
        known = ", ".join(f"{known}[:{NUMBERS[known]}]" if known in NUMBERS else known for known in NAMES)
        raise ValueError(f"unknown time grid {name!r}: use one of {known}; or the path of a fitted grid (.json)")
    if colon and kind not in NUMBERS:
        raise ValueError(f"the time grid {kind!r} takes no number, got {name!r}")
    try:
        number = float(text) if colon else None
    except ValueError:
        raise ValueError(f"what follows {kind}: must be a number ({NUMBERS[kind]}), got {name!r}") from None
    if number is not None and not 0 < number < math.inf:
        raise ValueError(f"what follows {kind}: must be above 0 ({NUMBERS[kind]}), got {name!r}")
    return NAMES[kind](num_steps, schedule, number)


def check(times: Sequence[float] | ArrayLike) -> np.ndarray:
    """Refuses times that do not fall from 1 (noise) to 0 (data); repeated times are padding and allowed.

    Raises:
        ValueError: saying what is wrong with them.
    """
    array = np.asarray(times, np.float64)
    if array.ndim != 1 or array.size < 2:
        raise ValueError(f"a time grid is a list of at least two times, got shape {array.shape}")
    if array[0] != 1 or array[-1] != 0:
        raise ValueError(f"a time grid must start at 1 (noise) and end at 0 (data), got {array[0]} and {array[-1]}")
    wrong = np.flatnonzero(~(np.diff(array) <= 0))
    if wrong.size:
        i = int(wrong[0])
        raise ValueError(f"a time grid must fall, but time {i + 1} is {array[i + 1]} after {array[i]}")
    return array


def pad(times: Grid, num_steps: int) -> Float[Array, " n"]:
    """Repeats the last time until the grid has room for `num_steps`: the samplers skip these steps and compile once.

    Raises:
        ValueError: the grid already has more steps.
    """
    times = jnp.asarray(times)
    if len(times) > num_steps + 1:
        raise ValueError(f"a grid of {len(times) - 1} steps does not fit into {num_steps}")
    return jnp.concatenate([times, jnp.full(num_steps + 1 - len(times), times[-1])])


def _from_file(path: pathlib.Path, num_steps: int) -> Float[Array, " n"]:
    try:
        times = from_list(json.loads(path.read_text(encoding="utf-8-sig"))["times"])
    except OSError as error:
        raise ValueError(f"cannot read the time grid {path}: {error.strerror}") from error
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} holds no time grid: it must be a JSON object with a list of times") from error
    if len(times) != num_steps + 1:
        raise ValueError(f"the grid in {path} has {len(times) - 1} steps and was fitted for them; got {num_steps}")
    return times


def _close(times: Float[Array, " n"]) -> Float[Array, " n+1"]:
    return jnp.concatenate([times.at[0].set(1.0), jnp.zeros(1)])


def _check(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"a grid needs at least one step, got num_steps={num_steps}")
