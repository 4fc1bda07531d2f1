"""Every distillation method on a problem whose truth is known: two-dimensional data, six modes, the exact flow map.

    python -m experiments.studies.distill_toy
    python -m experiments.studies.distill_toy methods=mean_flow,dmd2 scale=0.2     some methods, a fifth of the training

The teacher is the exact velocity; a small MLP learns from it, or from data. The table holds, for one, two and four
steps, the sliced W2 distance to the data (SWD) and the distance to the exact map from the same noise (RMS), with the
floor: the SWD of two exact clouds. Written to runs/distill_toy/table.json.
"""

import dataclasses
import functools
import json
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from data_pipelines import gaussian_mixtures
from nova_jax import config, distillation, environment, sampling
from nova_jax.diffusion import denoiser, time_sampling
from nova_jax.distillation import flow_map
from nova_jax.evaluation import distances
from nova_jax.sampling import time_grids
from nova_jax.training import optimizer
from nova_jax.training import step as steps_of_training
from nova_jax.types import Batch, Conditioning, Params, TrainState

PROBLEM = gaussian_mixtures.PRODUCT
CENTRES = np.array([[a, b] for a in (-1.0, 1.0) for b in (-1.4, 0.0, 1.2)])
WIDTH, DEPTH, FREQUENCIES = 128, 4, 16
CHUNK = 100  # training steps in one compiled call
STEPS = (1, 2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A method, how long to train it, and what its student starts from."""

    method: distillation.Method
    steps: int
    peak: float = 2e-3
    batch_size: int = 256
    schedule: Literal["constant", "cosine"] = "cosine"
    from_velocity: bool = False  # start from a network that has learnt the teacher's velocity


UNIFORM_PAIRS = distillation.AnyPair(time_sampling=time_sampling.Uniform(), same_share=0.25)
ALSO_FULL = dataclasses.replace(UNIFORM_PAIRS, full_share=0.05)
TO_DATA = distillation.ToData(time_sampling=time_sampling.Uniform(), full_share=0.05)
TRIALS: dict[str, Trial] = {
    "progressive": Trial(
        method=distillation.Progressive(first_steps=32, stage_length=2_500),
        steps=18_000,
        peak=1e-3,
        schedule="constant",
    ),
    "shortcut": Trial(method=distillation.Shortcut(), steps=20_000),
    "shortcut_data": Trial(method=distillation.Shortcut(source="data"), steps=20_000),
    "mean_flow": Trial(method=distillation.MeanFlow(pairs=UNIFORM_PAIRS, warmup=10_000), steps=20_000),
    "mean_flow_data": Trial(
        method=distillation.MeanFlow(
            source="data", pairs=dataclasses.replace(ALSO_FULL, same_share=0.5), warmup=10_000
        ),
        steps=20_000,
        peak=1e-3,
    ),
    "improved_mean_flow_data": Trial(
        method=distillation.MeanFlow(source="data", is_improved=True, pairs=UNIFORM_PAIRS, warmup=10_000), steps=20_000
    ),
    "continuous_consistency": Trial(
        method=distillation.MeanFlow(pairs=TO_DATA, sampler="renoise", warmup=10_000), steps=20_000
    ),
    "discrete_consistency": Trial(method=distillation.DiscreteConsistency(huber=0.3), steps=20_000, peak=1e-3),
    "dmd2": Trial(
        method=distillation.DMD2(critic_optimizer=optimizer.AdamW(peak=1e-3, warmup=0, b1=0.5)),
        steps=5_000,
        peak=2e-4,
        from_velocity=True,
    ),
    "joint": Trial(
        method=distillation.Joint(
            flow=distillation.MeanFlow(pairs=ALSO_FULL),
            matching=distillation.DMD2(num_steps=(4,), critic_optimizer=optimizer.AdamW(peak=1e-3, warmup=0, b1=0.5)),
            flow_scale=1.0,
            matching_scale=0.1,
        ),
        steps=5_000,
        peak=1e-3,
        from_velocity=True,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Which methods, how much of their training, and the points of the scores."""

    methods: tuple[str, ...] = tuple(TRIALS)
    scale: float = 1.0
    seed: int = 0
    points: int = 8192
    out: str = "runs/distill_toy"


def init_params(key: Array, dim: int = 2) -> Params:
    """An MLP of x and sinusoids of t and t - r."""
    sizes = [dim + 4 * FREQUENCIES, *[WIDTH] * DEPTH, dim]
    keys = jax.random.split(key, len(sizes) - 1)
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(k, (a, b)) * (0.0 if i == len(keys) - 1 else a**-0.5),
            "bias": jnp.zeros(b),
        }
        for i, (k, a, b) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True))
    }


def network(params: Params, x: Array, t: Array, cond: Conditioning) -> Array:
    """The student and the critic: without r it is read as t."""
    r = t if cond.r is None else cond.r
    frequencies = 2.0 ** jnp.linspace(-2.0, 4.0, FREQUENCIES)
    angles = jnp.concatenate([jnp.outer(t, frequencies), jnp.outer(t - r, frequencies)], axis=1)
    h = jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=1)
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        h = h @ layer["kernel"] + jnp.broadcast_to(layer["bias"], (len(x), layer["bias"].shape[0]))
        h = jax.nn.silu(h) if i < len(params) - 1 else h
    return h


def exact_velocity(params: Params, x: Array, t: Array, cond: Conditioning) -> Array:
    """The teacher: knows, and needs no parameters."""
    del params
    answer = PROBLEM.denoiser(flow_map.SCHEDULE)(x, t, cond)
    return answer.eps - answer.x0


NETWORKS = distillation.Networks(student=network, teacher=exact_velocity, critic=network)


def train(trial: Trial, seed: int, scale: float = 1.0, start: Params | None = None) -> TrainState:
    """Runs a method's own training step, `CHUNK` of them a call, on fresh data."""
    steps = max(CHUNK, round(trial.steps * scale) // CHUNK * CHUNK)
    method = trial.method
    if isinstance(method, distillation.Progressive):
        method = dataclasses.replace(method, stage_length=max(1, round(method.stage_length * scale)))
    if isinstance(method, distillation.MeanFlow):
        method = dataclasses.replace(method, warmup=round(method.warmup * scale))
    key_init, key_data = jax.random.split(jax.random.key(seed))
    adam = optimizer.AdamW(peak=trial.peak, warmup=min(100, steps // 10), schedule=trial.schedule, total_steps=steps)
    params = init_params(key_init) if start is None else start
    critic = init_params(jax.random.fold_in(key_init, 1)) if start is None else start
    state = distillation.start(method, NETWORKS, params, critic, adam)
    step = steps_of_training.uncompiled(method.make_step(NETWORKS, adam, ema_decay=0.999, seed=seed))

    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state: TrainState, key: Array) -> tuple[TrainState, Array]:
        def one(state: TrainState, key: Array) -> tuple[TrainState, Array]:
            state, metrics = step(state, Batch(PROBLEM.draw(key, trial.batch_size)))
            return state, metrics["loss"]

        return jax.lax.scan(one, state, jax.random.split(key, CHUNK))

    for chunk in range(steps // CHUNK):
        state, losses = advance(state, jax.random.fold_in(key_data, chunk))
        if not np.isfinite(losses[-1]):
            raise FloatingPointError(f"{method}: the loss is not finite after {(chunk + 1) * CHUNK} steps")
    return state


def draw(params: Params, sampler: str, steps: int, noise: Array, predict: Callable = network) -> np.ndarray:
    """Where a student, or any network that predicts velocity, takes the noise."""
    denoise = denoiser.make_denoiser(predict, params, flow_map.SCHEDULE)
    walk = jax.jit(
        functools.partial(
            sampling.sample, denoise, sampler=sampling.named(sampler), schedule=flow_map.SCHEDULE, cond=Conditioning()
        )
    )
    return np.asarray(walk(noise, times=jnp.asarray(time_grids.uniform(steps)), key=jax.random.key(5)).x)


def measure(trial: Trial, params: Params, points: int) -> dict[str, Any]:
    """The scores of one student at every number of steps."""
    noise = jax.random.normal(jax.random.key(1234), (points, 2))
    truth = PROBLEM.flow(np.asarray(noise, np.float64))
    found = {}
    for steps in STEPS:
        x = draw(params, trial.method.sampler, steps, noise)
        shares = distances.nearest_shares(x, CENTRES)
        found[steps] = {
            "swd": distances.sliced_wasserstein(x, truth),
            "rms": distances.rms(x, truth),
            "worst_mode": float(np.abs(shares - distances.nearest_shares(truth, CENTRES)).max()),
        }
    return found


def floor(points: int) -> float:
    """SWD of two independent exact clouds."""
    clouds = (np.asarray(PROBLEM.draw(jax.random.key(seed), points)) for seed in (11, 12))
    return distances.sliced_wasserstein(*clouds)


def velocity_network(seed: int, scale: float) -> Params:
    """A network that has learnt the exact velocity, for methods that start from their teacher."""
    pairs = distillation.AnyPair(time_sampling=time_sampling.Uniform(), same_share=0.5)
    return train(Trial(method=distillation.GuidanceDistillation(pairs=pairs), steps=5_000), seed, scale).ema


def main(settings: Settings) -> None:
    """Trains and scores every method, and prints the table."""
    if unknown := set(settings.methods) - set(TRIALS):
        raise config.ConfigError(f"no such methods: {sorted(unknown)}; there are {', '.join(TRIALS)}")
    folder = pathlib.Path(settings.out)
    folder.mkdir(parents=True, exist_ok=True)
    noise = jax.random.normal(jax.random.key(1234), (settings.points, 2))
    truth = PROBLEM.flow(np.asarray(noise, np.float64))
    rows: dict[str, Any] = {"floor": floor(settings.points), "methods": {}}
    print(f"{'':26}{'SWD 1':>8}{'2':>8}{'4':>8}   {'RMS 1':>8}{'2':>8}{'4':>8}   {'mode':>7}{'seconds':>9}")
    print(f"{'floor':26}{rows['floor']:8.3f}")
    euler = {n: draw({}, "euler", n, noise, exact_velocity) for n in STEPS}
    rows["euler"] = {
        n: {"swd": distances.sliced_wasserstein(x, truth), "rms": distances.rms(x, truth)} for n, x in euler.items()
    }
    _print_row("teacher, Euler", rows["euler"], None)
    starts: Params | None = None
    for name in settings.methods:
        trial, began = TRIALS[name], time.perf_counter()
        if trial.from_velocity and starts is None:
            starts = velocity_network(settings.seed, settings.scale)
        state = train(trial, settings.seed, settings.scale, starts if trial.from_velocity else None)
        seconds = time.perf_counter() - began
        rows["methods"][name] = {"steps": measure(trial, state.ema, settings.points), "seconds": seconds}
        _print_row(name, rows["methods"][name]["steps"], seconds)
    record = {"settings": config.to_dict(settings), "environment": environment.describe(), **rows}
    (folder / "table.json").write_text(json.dumps(record, indent=1) + "\n")


def _print_row(name: str, found: dict[int, dict[str, float]], seconds: float | None) -> None:
    swd, rms = ("".join(f"{found[n][what]:8.3f}" for n in STEPS) for what in ("swd", "rms"))
    mode = f"{found[1]['worst_mode']:7.3f}{seconds:9.0f}" if seconds is not None else ""
    print(f"{name:26}{swd}   {rms}   {mode}", flush=True)


if __name__ == "__main__":
    try:
        main(config.override(Settings(), sys.argv[1:]))
    except (ValueError, OSError) as error:
        sys.exit(f"distill_toy: {error}")
