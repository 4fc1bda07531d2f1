"""Two training steps timed against each other on a machine that does other things as well.

Both are compiled, their FLOPs counted by XLA, and then run in turn, a few steps at a time, so that whatever else the
machine does falls on both: the ratio is the median over the pairs of turns.
"""

import json
import pathlib
import sys
import time
from typing import Any

import jax
import numpy as np

from nova_jax import environment
from nova_jax.diffusion import FlowMatching
from nova_jax.runs import build
from nova_jax.training import step
from nova_jax.training.optimizer import Muon
from nova_jax.types import Batch, TrainState

TURN, TURNS = 3, 25  # steps in a turn; turns of each


def measure(first: tuple[str, Any, Batch], second: tuple[str, Any, Batch]) -> dict[str, Any]:
    """Seconds of a step of each (name, model, batch), and what the second takes of the time and FLOPs of the first."""
    names = (first[0], second[0])
    steps, states, flops, batches = {}, {}, {}, {}
    for name, model, batch in (first, second):
        batches[name] = batch
        steps[name], states[name], flops[name] = _prepare(model, batch)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(TURNS + 1):
        for name in names if turn % 2 else reversed(names):
            elapsed, states[name] = _seconds(steps[name], states[name], batches[name])
            if turn:  # the first one warms up
                times[name].append(elapsed / TURN)
    ratios = np.array(times[names[1]]) / np.array(times[names[0]])
    return {
        "step_seconds": {name: float(np.median(values)) for name, values in times.items()},
        "time_ratio": float(np.median(ratios)),
        "time_ratio_quartiles": [float(q) for q in np.percentile(ratios, [25, 75])],
        "flops_ratio": flops[names[1]] / flops[names[0]],
        "batch_size": len(first[2].x0),
        "turns": TURNS,
        "environment": environment.describe(),
    }


def report(record: dict[str, Any], module: str) -> None:
    """Prints the figures, and writes them as JSON to the path of the command line."""
    print({key: record[key] for key in ("step_seconds", "time_ratio", "time_ratio_quartiles", "flops_ratio")})
    record = record | {"command": " ".join([f"python -m experiments.{module}", *sys.argv[1:]])}
    pathlib.Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n")


def _prepare(model: Any, batch: Batch) -> tuple[Any, TrainState, float]:
    """The compiled step, its state and its FLOPs."""
    made = build.plain(model, FlowMatching(), Muon(peak=1e-3), batch, seed=0, ema_decay=0.99)
    state = step.build(made.make_state, *made.arguments)
    train_step: Any = made.train_step
    compiled = train_step.lower(state, batch).compile()
    return compiled, state, float(compiled.cost_analysis()["flops"])


def _seconds(train_step: Any, state: TrainState, batch: Batch) -> tuple[float, TrainState]:
    """Time of one turn."""
    began = time.perf_counter()
    for _ in range(TURN):
        state, _ = train_step(state, batch)
    jax.block_until_ready(state)
    return time.perf_counter() - began, state
