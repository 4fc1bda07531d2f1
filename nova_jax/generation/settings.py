"""How images and videos are sampled: the solver, its steps and time grid, guidance; and what a run supports of it."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from nova_jax import distillation, sampling
from nova_jax.diffusion import schedules
from nova_jax.generation import placement, program
from nova_jax.runs.load import TrainedRun
from nova_jax.sampling import time_grids


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How images are drawn.

    Attributes:
        sampler: A name from `sampling.SAMPLERS`.
        num_steps: Of the sampler; how often it evaluates the network in each is its own affair.
        guidance_scale: Of classifier-free guidance; 1 is none, and costs half.
        guidance_interval: (low, high), the times within which to guide; None: all.
        time_grid: A name that `sampling.time_grids.named` knows, or the JSON file of a fitted grid.
        start: Where drawing starts, below 1 from what `sampling.noise.start` knows of data; the grid shrinks to it.
        given_noise: The time at which given frames are shown (`diffusion.given_frames`).
    """

    sampler: str = "heun"
    num_steps: int = 25
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] | None = None
    time_grid: str = "uniform"
    start: float = 1.0
    given_noise: float = 0.0

    def __post_init__(self) -> None:
        sampling.named(self.sampler, self.num_steps)
        if not 0 <= self.guidance_scale < np.inf:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more (1 is no guidance)")
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1:
            low, high = self.guidance_interval
            raise ValueError(f"guidance_interval is {low} {high}; it must be two times, 0 <= low < high <= 1")
        if not (0 < self.start <= 1 and 0 <= self.given_noise <= 1):
            raise ValueError(f"start={self.start} must lie in (0, 1] and given_noise={self.given_noise} in [0, 1]")


def settings_for(trained: TrainedRun) -> SamplingSettings:
    """How a run draws when nothing else is asked for: a student as its method says, in four steps or what it knows."""
    method = trained.objective
    if not isinstance(method, distillation.Method):
        return SamplingSettings()
    steps = max((n for n in method.trained_steps or (4,) if n <= 4), default=min(method.trained_steps or (4,)))
    return SamplingSettings(sampler=method.sampler, num_steps=steps, guidance_scale=1.0)


def check_settings(trained: TrainedRun, settings: SamplingSettings) -> None:
    """Refuses what a few-step student has not learnt.

    Raises:
        ValueError: a number of steps outside the trained ones, or guidance on top of what is distilled in.
    """
    method = trained.objective
    if not isinstance(method, distillation.Method):
        return
    known = method.trained_steps
    if known is not None and settings.sampler in ("flow_map", "renoise") and settings.num_steps not in known:
        raise ValueError(
            f"this student of {type(method).__name__} has not learnt num_steps={settings.num_steps}: use one of "
            f"{', '.join(map(str, known))}"
        )
    if not program.reads_guidance(trained.network) and settings.guidance_scale != 1:
        raise ValueError(
            f"guidance_scale={settings.guidance_scale:g}, but guidance of {method.guidance.scale:g} is distilled into "
            "this student: use 1"
        )


def time_grid(trained: TrainedRun, settings: SamplingSettings) -> jax.Array:
    """The falling times (n + 1,) that the settings ask for, on the schedule of the run."""
    return settings.start * time_grids.named(settings.time_grid, settings.num_steps, trained.objective.schedule)


def padded_times(trained: TrainedRun, settings: SamplingSettings, room: int) -> jax.Array:
    """The same times, the last one repeated until there are `room` + 1."""
    grid: str | tuple[float, ...] = settings.time_grid
    if grid.endswith(".json"):  # its numbers, not its name, decide what is compiled
        grid = tuple(np.asarray(time_grids.named(grid, settings.num_steps, trained.objective.schedule)).tolist())
    make = _make_times(grid, settings.num_steps, settings.start, trained.objective.schedule, room)
    return placement.call(trained, make)


@functools.lru_cache(maxsize=64)
def _make_times(
    grid: str | tuple[float, ...], num_steps: int, start: float, schedule: schedules.Schedule, room: int
) -> Any:
    def make_times() -> jax.Array:
        whole = time_grids.named(grid, num_steps, schedule) if isinstance(grid, str) else time_grids.from_list(grid)
        return time_grids.pad(start * whole, room)

    return jax.jit(make_times)
