"""Speed of a full training step: forward, backward, clipping, AdamW and EMA, on random latents of 256 tokens.

    python -m experiments.benchmarks.train_step                     DiT-B/2 and DiT-XL/2, the largest batch that fits
    python -m experiments.benchmarks.train_step nano 16             one preset, one batch size

Prints one JSON line per preset: images/s, TFLOP/s and MFU (closed-form FLOPs of models/flops.py, three forward passes
per step, recomputation not counted), median and spread over the timed steps, peak, versions and the command. On a GPU
it computes in bfloat16 with cuDNN attention and named rematerialisation; save the lines under experiments/results/.
"""

import json
import statistics
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from nova_jax import environment
from nova_jax.diffusion import FlowMatching
from nova_jax.models import flops, presets
from nova_jax.runs import build
from nova_jax.training import optimizer, step
from nova_jax.types import Batch, Conditioning

LATENTS = (1, 32, 32, 16)  # f h w c: 256 tokens at patch 2, as DiT at 256 px
TEXT = (32, 256)  # states of a caption
BATCHES = (512, 384, 256, 192, 128, 96, 64, 32, 16, 8)
WARM_UP, TIMED = 3, 20


def main() -> None:
    """Measures the presets of the command line."""
    names = sys.argv[1:2] or ["B/2", "XL/2"]
    batches = tuple(map(int, sys.argv[2:3])) or BATCHES
    for name in names:
        print(json.dumps(measure(name, batches)), flush=True)


def measure(name: str, batches: tuple[int, ...]) -> dict[str, Any]:
    """Speed of one preset at the first batch size that fits into memory."""
    for batch_size in batches:
        try:
            return time_steps(name, batch_size)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(f"{name}: batch {batch_size} does not fit", file=sys.stderr)
    raise MemoryError(f"{name}: not even batch {batches[-1]} fits on {jax.devices()[0].device_kind}")


def time_steps(name: str, batch_size: int) -> dict[str, Any]:
    """Times steps of one preset at one batch size; each ends when its loss has arrived."""
    on_gpu = jax.default_backend() == "gpu"
    model = presets.dit(
        name,
        text_dim=TEXT[1],
        dtype=jnp.bfloat16 if jax.default_backend() != "cpu" else jnp.float32,
        attention_implementation="cudnn" if on_gpu else None,
        remat="names",
    )
    keys = jax.random.split(jax.random.key(0), 2)
    batch = Batch(
        jax.random.normal(keys[0], (batch_size, *LATENTS)),
        Conditioning(
            text=jax.random.normal(keys[1], (batch_size, *TEXT)), text_mask=jnp.ones((batch_size, TEXT[0]), bool)
        ),
    )
    adamw = optimizer.AdamW(peak=1e-4, warmup=10)
    example = jax.tree.map(lambda x: x[:1], batch)
    state = step.build(lambda key: step.start(build.init_params(model, example, key), adamw), jax.random.key(0))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    train_step = step.make_step(FlowMatching(num_bins=0), build.as_network(model), adamw)
    seconds, losses = [], []
    for _ in range(WARM_UP + TIMED):
        start = time.perf_counter()
        state, metrics = train_step(state, batch)
        losses.append(float(metrics["loss"]))
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[WARM_UP:])
    per_step = flops.train_step_flops(float(model.flops(LATENTS[:3], TEXT[0])), batch_size)
    peak, source = environment.peak_flops()
    return {
        "preset": name,
        "parameters": parameters,
        "batch_size": batch_size,
        "tokens": 256,
        "images_per_s": round(batch_size / median, 2),
        "tflops": round(per_step / median / 1e12, 4),
        "mfu": round(per_step / median / peak, 4),
        "seconds_per_step": {"median": median, "min": min(seconds[WARM_UP:]), "max": max(seconds[WARM_UP:])},
        "compile_seconds": round(seconds[0], 1),
        "last_loss": losses[-1],
        "dtype": str(jnp.dtype(model.dtype)),
        "attention": model.attention_implementation or "default",
        "remat": model.remat,
        "peak_flops": peak,
        "peak_source": source,
        "environment": environment.describe(),
        "command": "python -m experiments.benchmarks.train_step " + " ".join(sys.argv[1:]),
    }


if __name__ == "__main__":
    main()
