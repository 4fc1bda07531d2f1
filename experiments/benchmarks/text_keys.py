"""What it saves to make the keys and values of the text once a sample, and not once an evaluation.

    python -m experiments.benchmarks.text_keys experiments/results/text_keys_cpu.json

A guided sample of 256 tokens is taken with texts of several lengths, keys made once and in every evaluation, in turn.
FLOPs of an evaluation are XLA's count of the network without a loop over depth, before it optimises; seconds are those
of the whole sample. The two programs multiply matrices of other shapes and fuse other sums, so their samples agree up
to the rounding of float32; evaluations of equal rows agree to the bit (`tests/models/test_text_keys.py`).
"""

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax import environment, sampling
from nova_jax.diffusion import FlowMatching
from nova_jax.evaluation import timing
from nova_jax.generation import program
from nova_jax.models import presets
from nova_jax.models.text_keys import with_text_keys
from nova_jax.sampling import noise, time_grids
from nova_jax.types import Conditioning

MODEL, DEPTH, SHAPE = "S/2", 4, (1, 32, 32, 16)  # fewer layers: the ratios stay
LENGTHS = (32, 128, 512)  # of the text: our own encoder, T5 as our runs read it, T5 as Wan reads it
STEPS, TURNS = 2, 7


def measure(length: int) -> dict[str, Any]:
    """FLOPs of an evaluation and seconds of a sample, both ways, at one length of the text."""
    network = presets.dit(MODEL, depth=DEPTH)
    rng = np.random.default_rng(0)
    text = jnp.asarray(rng.standard_normal((1, length, network.text_dim), np.float32))
    cond, null = Conditioning(text=text), Conditioning(text=jnp.zeros_like(text))
    x, t = jnp.zeros((1, *SHAPE)), jnp.ones(1)
    forms = jax.eval_shape(network.init, jax.random.key(0), x, t, cond)["params"]
    params = jax.tree.map(lambda a: jnp.asarray(0.05 * rng.standard_normal(a.shape, np.float32)), forms)
    once = jax.jit(lambda p, c: with_text_keys(network, p, c))(params, cond)
    flops = [_flops(network.clone(scan_unroll=network.depth), params, x, t, c) for c in (cond, once)]
    programs = [jax.jit(_sample(network, is_once)) for is_once in (False, True)]
    first, second = (np.asarray(run(params, cond, null)) for run in programs)  # compiles
    difference = np.abs(first - second).max() / np.abs(first).max()
    seconds: list[list[float]] = [[], []]
    for turn in range(TURNS):
        for which in (0, 1) if turn % 2 else (1, 0):
            spent, _ = timing.seconds(lambda which=which: programs[which](params, cond, null))
            seconds[which].append(spent)
    return {
        "text_length": length,
        "gflops_per_evaluation": [round(f / 1e9, 3) for f in flops],
        "flops_ratio": round(flops[1] / flops[0], 4),
        "largest_difference": float(difference),  # of the largest value of the sample
        "seconds": [timing.spread(s) for s in seconds],
        "time_ratio": timing.spread(np.divide(seconds[1], seconds[0]).tolist()),
    }


def _sample(network: Any, is_once: bool) -> Any:
    objective = FlowMatching()

    def run(params: Any, cond: Conditioning, null: Conditioning) -> jax.Array:
        if is_once:
            cond, null = (with_text_keys(network, params, c) for c in (cond, null))
        return sampling.sample(
            program.make_denoiser(network, params, objective, null, "guided", jnp.float32(4), None),
            noise.initial_noise(jnp.zeros(1, jnp.uint32), SHAPE),
            sampler=sampling.Euler(),
            times=time_grids.uniform(STEPS),
            schedule=objective.schedule,
            cond=cond,
        ).x

    return run


def _flops(network: Any, params: Any, x: jax.Array, t: jax.Array, cond: Conditioning) -> float:
    analysis: Any = jax.jit(network.apply).lower({"params": params}, x, t, cond).cost_analysis()
    return float(analysis["flops"])


if __name__ == "__main__":
    found = []
    for length in LENGTHS:
        found.append(measure(length))
        print(json.dumps(found[-1]), flush=True)
    facts = {"model": MODEL, "depth": DEPTH, "latents": SHAPE, "steps": STEPS, "order": ["every evaluation", "once"]}
    command = " ".join(["python -m experiments.benchmarks.text_keys", *sys.argv[1:]])
    record = {"command": command, **facts, "texts": found, "environment": environment.describe()}
    if len(sys.argv) > 1:
        pathlib.Path(sys.argv[1]).write_text(json.dumps(record, indent=1) + "\n")
