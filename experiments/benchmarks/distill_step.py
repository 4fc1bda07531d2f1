"""What a distillation step costs beside the flow-matching step of the same network: FLOPs and memory by XLA's count.

    python -m experiments.benchmarks.distill_step PATH               writes the figures as JSON to PATH
    python -m experiments.benchmarks.distill_step PATH 12 512 16     depth, width and batch size

All gradients are compiled for one DiT with its layers unrolled (a loop's body would be counted once), once with nothing
rematerialised and once with the named policy: FLOPs from `cost_analysis`, temporary memory from `memory_analysis`.
Nothing runs.
"""

import functools
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp

from nova_jax import distillation, environment
from nova_jax.diffusion import FlowMatching
from nova_jax.layers import stack
from nova_jax.models.dit import DiT
from nova_jax.runs import build
from nova_jax.training.optimizer import AdamW
from nova_jax.types import Batch, Conditioning, Params, TrainState

LATENTS = (1, 32, 32, 4)  # 256 tokens at patch 2
TEXT = (16, 64)
REMAT: tuple[stack.Remat, ...] = ("none", "names")
METHODS = {
    "mean_flow_data": distillation.MeanFlow(source="data"),
    "improved_mean_flow_data": distillation.MeanFlow(source="data", is_improved=True),
    "mean_flow_teacher": distillation.MeanFlow(),
    "mean_flow_difference": distillation.MeanFlow(source="data", difference=0.02),
}


def make_batch(batch_size: int) -> Batch:
    """Latents and text states of zeros: nothing runs, only shapes count."""
    text, mask = jnp.zeros((batch_size, *TEXT)), jnp.ones((batch_size, TEXT[0]), bool)
    return Batch(jnp.zeros((batch_size, *LATENTS)), Conditioning(text=text, text_mask=mask))


def cost(function: Any, *arguments: Any) -> dict[str, float]:
    """FLOPs and temporary bytes of a compiled function of these shapes."""
    compiled = jax.jit(function).lower(*arguments).compile()
    analysis: Any = compiled.cost_analysis()
    memory: Any = compiled.memory_analysis()
    return {"gflops": analysis["flops"] / 1e9, "temporary_mb": memory.temp_size_in_bytes / 1e6}


def compare(remat: stack.Remat, depth: int, width: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Flow matching and every method of the list, each with its ratios to flow matching."""
    model = DiT(
        width=width,
        depth=depth,
        num_heads=width // 64,
        in_channels=LATENTS[-1],
        text_dim=TEXT[1],
        has_second_time=True,
        scan_unroll=depth,
        remat=remat,
    )
    network, batch = build.as_network(model), make_batch(batch_size)
    params = jax.eval_shape(lambda key: build.init_params(model, make_batch(1), key), jax.random.key(0))
    key = jax.random.key(0)
    plain = FlowMatching(num_bins=0)
    networks = distillation.Networks(student=network, teacher=network, critic=network)

    def flow_matching(params: Params, batch: Batch, key: Any) -> Any:
        return jax.grad(lambda p: plain(network, p, batch, key)[0])(params)

    def distil(method: Any, state: TrainState, batch: Batch, key: Any) -> Any:
        return jax.grad(lambda p: method.loss(networks, p, state, batch, key)[0])(state.params)

    rows = {"flow_matching": cost(flow_matching, params, batch, key)}
    for name, method in METHODS.items():
        start = functools.partial(distillation.start, method, networks, optimizer=AdamW())
        state = jax.eval_shape(start, params, params)
        rows[name] = cost(functools.partial(distil, method), state, batch, key)
    plainly = dict(rows["flow_matching"])
    for row in rows.values():
        row |= {f"{what}_ratio": row[what] / plainly[what] for what in plainly}
    return rows


def main(path: str, depth: int = 4, width: int = 384, batch_size: int = 4) -> None:
    """Compares without and with named rematerialisation, prints the rows and writes them."""
    found: dict[str, Any] = {}
    for remat in REMAT:
        found[remat] = compare(remat, depth, width, batch_size)
        for name, row in found[remat].items():
            print(f"{remat:6}{name:26}" + "".join(f"{what}={value:.4g}  " for what, value in row.items()), flush=True)
    record = {
        "depth": depth,
        "width": width,
        "batch_size": batch_size,
        "tokens": 256,
        "rows": found,
        "environment": environment.describe(),
        "command": "python -m experiments.benchmarks.distill_step " + " ".join(sys.argv[1:]),
    }
    pathlib.Path(path).write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    if not 2 <= len(sys.argv) <= 5:
        sys.exit(__doc__)
    main(sys.argv[1], *map(int, sys.argv[2:]))
