"""What every way of fitting shares: samples, the compiled sampler, the reference, and the errors that are reported."""

import dataclasses
import datetime
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import core
from jaxtyping import Array, Float

from nova_jax.diffusion import denoiser as denoisers
from nova_jax.diffusion import schedules
from nova_jax.sampling import heun, time_grids
from nova_jax.sampling import sampler as samplers
from nova_jax.sampling.fitted import grid as fitted_grid
from nova_jax.types import Denoised


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """How a grid is fitted.

    Attributes:
        steps: of Adam.
        learning_rate: the first; it falls to 0 along a cosine.
        batch_size: samples per step; also how many pass the denoiser at once in every measurement.
        held_out: the share of samples, the last ones, that only judge.
        evaluate_every: steps between two measurements of all fitted samples, of which the best grid is kept.
        reference_steps: of Heun's method, for the reference path.
        seed: of the order of the samples.
    """

    steps: int = 300
    learning_rate: float = 0.05
    batch_size: int = 64
    held_out: float = 0.25
    evaluate_every: int = 10
    reference_steps: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "reference_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, got {self.held_out}")


DEFAULTS = FitSettings()


def fixed_grids(num_steps: int, schedule: schedules.Schedule) -> dict[str, np.ndarray]:
    """The grids that need no fitting, by name."""
    names = ("uniform", "shifted:3", "shifted:0.33", "quadratic", "cosine", "logsnr", "karras")
    return {name: np.asarray(time_grids.named(name, num_steps, schedule)) for name in names}


def reference_ends(
    problem: samplers.Problem, noise: Float[Array, "n *dims"], *, num_steps: int = 200, batch_size: int = 64
) -> Float[Array, "n *dims"]:
    """Where a fine path ends: Heun's method, half of its times even in t and half even in log-SNR."""
    times = even_in_time_and_logsnr(num_steps, problem.schedule)
    program = Program(problem, noise, heun.Heun(), batch_size)
    return jnp.asarray(program.ends(times))


class Program:
    """Sampling with one solver as compiled functions of (weights, rows, ...), for batches of one size.

    The weights that a denoiser closes over become arguments, and so no part of the program.
    """

    def __init__(
        self, problem: samplers.Problem, noise: Float[Array, "n *dims"], sampler: samplers.Sampler, batch_size: int
    ) -> None:
        self.noise = np.asarray(noise, jnp.promote_types(noise.dtype, jnp.float32))
        self.cond = jax.tree.map(np.asarray, problem.cond)
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(self.cond)} | {self.noise.shape[:1]}
        if len(sizes) > 1:
            raise ValueError(f"the condition needs one row for each of the {len(noise)} rows of noise")
        self.problem, self.sampler = problem, sampler
        self.batch_size = min(batch_size, len(self.noise))
        x, cond = self.rows(np.arange(self.batch_size))
        self.denoise, self.weights = _take_out_weights(problem.denoiser, x, cond)
        self._ends = jax.jit(self._sample)

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, Any]:
        """These rows of noise and condition."""
        return self.noise[indices], jax.tree.map(lambda leaf: leaf[indices], self.cond)

    def bind(self, weights: Any, cond: Any) -> samplers.Problem:
        """The problem with these weights and rows of the condition."""

        def denoise(x: Array, t: Array, cond: Any) -> Denoised:
            return self.denoise(weights, x, t, cond)

        declared = denoisers.declare(denoise, lambda t: denoisers.evaluations(self.problem.denoiser, t))
        return samplers.Problem(declared, cond, self.problem.schedule)

    def batches(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
        """The rows in batches of one size; the last is filled up, and says how many of it count."""
        for first in range(0, len(rows), self.batch_size):
            part = rows[first : first + self.batch_size]
            yield np.resize(part, self.batch_size), len(part)

    def ends(self, times: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """Where sampling along these times ends, from each of these rows."""
        rows = np.arange(len(self.noise)) if rows is None else rows
        grid = np.asarray(times, self.noise.dtype)
        ends = [
            np.asarray(self._ends(self.weights, *self.rows(part), grid).x)[:count] for part, count in self.batches(rows)
        ]
        return np.concatenate(ends)

    def nfe(self, times: np.ndarray) -> int:
        """Network evaluations for each sample."""
        x, cond = self.rows(np.arange(self.batch_size))
        return int(self._ends(self.weights, x, cond, np.asarray(times, self.noise.dtype)).nfe)

    def _sample(self, weights: Any, x: Array, cond: Any, times: Array) -> Any:
        problem = self.bind(weights, cond)
        return samplers.sample(
            problem.denoiser, x, sampler=self.sampler, times=times, schedule=problem.schedule, cond=cond
        )


class Fit(Program):
    """A program with a reference, and samples divided into those that are fitted on and those held out."""

    def __init__(
        self,
        problem: samplers.Problem,
        noise: Float[Array, "n *dims"],
        sampler: samplers.Sampler,
        reference: Float[Array, "n *dims"] | None,
        settings: FitSettings,
    ) -> None:
        if len(noise) < 2:
            raise ValueError(f"a fit needs at least two samples, one of them held out; got {len(noise)}")
        super().__init__(problem, noise, sampler, settings.batch_size)
        if reference is None:
            reference = reference_ends(
                problem, noise, num_steps=settings.reference_steps, batch_size=settings.batch_size
            )
        self.reference = np.asarray(reference, self.noise.dtype)
        if self.reference.shape != self.noise.shape:
            raise ValueError(f"the reference must have the shape of the noise, {noise.shape}, got {reference.shape}")
        self.settings = settings
        held_out = min(max(round(settings.held_out * len(noise)), 1), len(noise) - 1)
        self.fitted, self.held_out = np.split(np.arange(len(noise)), [len(noise) - held_out])

    def rmse(self, times: np.ndarray, rows: np.ndarray) -> float:
        """The root of the loss; infinite where sampling breaks down."""
        error = np.sqrt(np.mean(np.square(self.ends(times, rows) - self.reference[rows]), dtype=np.float64))
        return float(error) if np.isfinite(error) else float("inf")

    def best_of(self, grids: Mapping[str, time_grids.Grid], num_steps: int) -> tuple[str, np.ndarray]:
        """The grid with the least error on the fitted samples, and its name."""
        checked = {name: time_grids.check(np.asarray(grid)) for name, grid in grids.items()}
        for name, grid in checked.items():
            if len(grid) != num_steps + 1:
                raise ValueError(f"the start {name!r} has {len(grid) - 1} steps, not {num_steps}")
        best = min(checked, key=lambda name: self.rmse(checked[name], self.fitted))
        return best, checked[best]

    def fitted_batch(self) -> np.ndarray:
        """One batch of the fitted samples."""
        return np.resize(self.fitted, self.batch_size)

    def report(self, method: str, times: np.ndarray, name: str, start: np.ndarray) -> fitted_grid.FittedGrid:
        """The grid with its errors and those of the fixed grid it is to beat."""
        return fitted_grid.FittedGrid(
            times=tuple(float(t) for t in times),
            sampler=repr(self.sampler),
            schedule=repr(self.problem.schedule),
            method=method,
            start=name,
            nfe=self.nfe(times),
            rmse_fitted=(self.rmse(start, self.fitted), self.rmse(times, self.fitted)),
            rmse_held_out=(self.rmse(start, self.held_out), self.rmse(times, self.held_out)),
            samples=len(self.noise),
            date=datetime.date.today().isoformat(),
        )


def _take_out_weights(
    denoiser: Callable[..., Denoised], x: np.ndarray, cond: Any
) -> tuple[Callable[..., Denoised], list[Any]]:
    """The denoiser as a function of (weights, x, t, cond), for inputs of these shapes, and its weights."""
    times = np.ones(x.shape[:1], x.dtype)
    traced, shapes = jax.make_jaxpr(denoiser, return_shape=True)(x, times, cond)
    tree = jax.tree.structure(shapes)

    def denoise(weights: list[Any], x: Array, t: Array, cond: Any) -> Denoised:
        return jax.tree.unflatten(tree, core.eval_jaxpr(traced.jaxpr, weights, *jax.tree.leaves((x, t, cond))))

    return denoise, traced.consts


def even_in_time_and_logsnr(num_steps: int, schedule: schedules.Schedule) -> np.ndarray:
    """About `num_steps` steps: half of the times even in t, half in log-SNR."""
    half = max(num_steps // 2, 1)
    both = np.concatenate([np.asarray(make) for make in (time_grids.uniform(half), time_grids.logsnr(half, schedule))])
    return np.unique(np.round(both.astype(np.float64), 6))[::-1]
