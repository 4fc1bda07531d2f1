"""What the inputs of editing cost a batch that uses none of them: one network plain, and grown.

    python -m experiments.bench_canvas_step PATH          writes the figures as JSON to PATH

Both training steps are compiled, their FLOPs counted by XLA, and then run in turn, a few at a time, so that whatever
else the machine does falls on both: the ratio is the median over the pairs of turns.
"""

import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import canvas
from nova_jax import environment, recipe
from nova_jax.diffusion import FlowMatching
from nova_jax.training import step
from nova_jax.training.optimizer import Muon
from nova_jax.types import Batch, Conditioning, TrainState

BATCH, TURN, TURNS = 64, 3, 25  # rows; steps in a turn; turns of each


def make_batch() -> Batch:
    """Captions and latents of the canvas experiment's shapes."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(3, 60, (BATCH, 96)), jnp.int32)
    x0 = jnp.asarray(rng.standard_normal((BATCH, 1, 4, 4, canvas.VAE.latent_channels), np.float32))
    return Batch(x0, Conditioning(text_ids=ids, text_mask=jnp.ones(ids.shape, bool)))


def prepare(model: Any, batch: Batch) -> tuple[Any, TrainState, float]:
    """The compiled step, its state and its FLOPs."""
    made = recipe.plain(model, FlowMatching(), Muon(peak=1e-3), batch, seed=0, ema_decay=0.99)
    state = step.build(made.make_state, *made.arguments)
    train_step: Any = made.train_step
    compiled = train_step.lower(state, batch).compile()
    return compiled, state, float(compiled.cost_analysis()["flops"])


def seconds(train_step: Any, state: TrainState, batch: Batch) -> tuple[float, TrainState]:
    """Time of one turn."""
    began = time.perf_counter()
    for _ in range(TURN):
        state, _ = train_step(state, batch)
    jax.block_until_ready(state)
    return time.perf_counter() - began, state


def main(path: str) -> None:
    """Measures, prints and writes."""
    batch = make_batch()
    models = {"plain": canvas.make_model(), "grown": canvas.grown(canvas.make_model())}
    steps, states, flops = {}, {}, {}
    for name, model in models.items():
        steps[name], states[name], flops[name] = prepare(model, batch)
    times: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(TURNS + 1):
        for name in models if turn % 2 else reversed(models):
            elapsed, states[name] = seconds(steps[name], states[name], batch)
            if turn:  # the first one warms up
                times[name].append(elapsed / TURN)
    ratios = np.array(times["grown"]) / np.array(times["plain"])
    record = {
        "step_seconds": {name: float(np.median(values)) for name, values in times.items()},
        "time_ratio": float(np.median(ratios)),
        "time_ratio_quartiles": [float(q) for q in np.percentile(ratios, [25, 75])],
        "flops_ratio": flops["grown"] / flops["plain"],
        "batch_size": BATCH,
        "turns": TURNS,
        "environment": environment.describe(),
        "command": "python -m experiments.bench_canvas_step " + " ".join(sys.argv[1:]),
    }
    print({key: record[key] for key in ("step_seconds", "time_ratio", "time_ratio_quartiles", "flops_ratio")})
    pathlib.Path(path).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
