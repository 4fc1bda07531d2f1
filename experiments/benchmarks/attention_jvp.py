"""Seconds and memory of attention, of its gradient and of its derivative along a direction, for each implementation.

    python -m experiments.benchmarks.attention_jvp PATH [LENGTH ..]      writes the figures as JSON to PATH

Four programs of self-attention over LENGTH tokens: `forward`; `grad`, of the sum of squares; `jvp`, value and tangent;
`meanflow`, the gradient of a loss that holds the tangent as a constant, which is what MeanFlow trains with. For each
the time of a call (median, least and most of several, compilation apart), the median of its ratios to "xla" called in
the same round, and XLA's peak of temporary memory. Programs that an implementation refuses, or that do not fit, are
left out. On a GPU it computes in bfloat16, with cuDNN.

Measured in 2026-11 on two CPU cores that other jobs kept busy, two heads of 64 in float32, so without the flash kernel
(experiments/results/attention_jvp_cpu.json); ratio of time to "xla", and MB, at 4096 tokens:

                xla           tiled         flash_jvp
    grad        1.00   275    0.88    23
    jvp         1.00   283    0.52    29    0.73    34
    meanflow    1.00   279    0.78    34    0.89    42

XLA does not count what a fused library call keeps inside, such as the scores of "xla" in `forward` at 4096 tokens.
"""

import functools
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from nova_jax import environment
from nova_jax.layers import attention, attention_jvp

LENGTHS = (256, 1024, 4096)
CALLS = 5
Attend = Callable[..., jax.Array]
Arrays = tuple[jax.Array, ...]


def forward(attend: Attend, qkv: Arrays, _: Arrays) -> jax.Array:
    """Attention alone."""
    return attend(*qkv)


def grad(attend: Attend, qkv: Arrays, _: Arrays) -> Arrays:
    """Reverse mode."""
    return jax.grad(lambda qkv: jnp.sum(jnp.square(attend(*qkv).astype(jnp.float32))))(qkv)


def jvp(attend: Attend, qkv: Arrays, direction: Arrays) -> tuple[jax.Array, jax.Array]:
    """Forward mode."""
    return jax.jvp(attend, qkv, direction)


def meanflow(attend: Attend, qkv: Arrays, direction: Arrays) -> Arrays:
    """Reverse mode of a loss whose target holds the tangent."""

    def loss(qkv: Arrays) -> jax.Array:
        out, tangent = jax.jvp(attend, qkv, direction)
        return jnp.sum(jnp.square((out - jax.lax.stop_gradient(tangent)).astype(jnp.float32)))

    return jax.grad(loss)(qkv)


PROGRAMS = (forward, grad, jvp, meanflow)


def main() -> None:
    """Measures the lengths of the command line."""
    path, *lengths = sys.argv[1:]
    on_gpu = jax.default_backend() == "gpu"
    batch_size, num_heads, head_dim = (4, 16, 64) if on_gpu else (1, 2, 64)
    names: tuple[attention.Implementation, ...] = ("xla", "tiled", "flash_jvp")
    names = (*names, "cudnn") if on_gpu else names
    dtype = jnp.bfloat16 if on_gpu else jnp.float32
    rows = []
    for length in map(int, lengths or LENGTHS):
        arrays = jax.random.normal(jax.random.key(0), (6, batch_size, length, num_heads, head_dim), dtype)
        for program in PROGRAMS:
            rows += compare(program, names, tuple(arrays[:3]), tuple(arrays[3:]))
    found = {
        "shape": {
            "batch_size": batch_size,
            "num_heads": num_heads,
            "head_dim": head_dim,
            "dtype": str(jnp.dtype(dtype)),
        },
        "blocks": {"queries": attention.QUERY_BLOCK, "keys": attention_jvp.KEY_BLOCK},
        "rows": rows,
        "environment": environment.describe(),
        "command": "python -m experiments.benchmarks.attention_jvp " + " ".join(sys.argv[1:]),
    }
    pathlib.Path(path).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def compare(
    program: Callable[..., Any], names: tuple[attention.Implementation, ...], qkv: Arrays, direction: Arrays
) -> list[dict[str, Any]]:
    """One row per implementation that can run the program; they take turns, so that a busy machine slows all alike."""
    rows, calls = {}, {}
    for name in filter(functools.partial(can_run, program), names):
        attend = functools.partial(attention.attend, implementation=name)
        try:
            rows[name], calls[name] = compile_and_run(functools.partial(program, attend), qkv, direction)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
    seconds = {name: [] for name in calls}
    for name in list(calls) * CALLS:
        start = time.perf_counter()
        jax.block_until_ready(calls[name](qkv, direction))
        seconds[name].append(time.perf_counter() - start)
    labels = {"length": qkv[0].shape[1], "program": program.__name__}
    return [labels | {"attention": name} | row | summarize(name, seconds) for name, row in rows.items()]


def summarize(name: str, seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Time of a call, and its ratio to plain attention if that ran."""
    spent = seconds[name]
    ratios = [a / b for a, b in zip(spent, seconds["xla"], strict=True)] if "xla" in seconds else None
    return {
        "seconds": {"median": statistics.median(spent), "min": min(spent), "max": max(spent)},
        "to_xla": round(statistics.median(ratios), 3) if ratios else None,
    }


def can_run(program: Callable[..., Any], name: attention.Implementation) -> bool:
    """Whether the implementation has the autodiff mode that the program asks for."""
    if program in (jvp, meanflow):
        return name in attention.FORWARD_MODE
    return program is not grad or name != "flash_jvp"


def compile_and_run(
    program: Callable[..., Any], qkv: Arrays, direction: Arrays
) -> tuple[dict[str, Any], Callable[..., Any]]:
    """Cost of compilation, temporary memory, and the compiled program after its first call."""
    start = time.perf_counter()
    compiled = jax.jit(program).lower(qkv, direction).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(compiled(qkv, direction))
    memory = compiled.memory_analysis()
    return {
        "temporary_bytes": None if memory is None else memory.temp_size_in_bytes,
        "compile_seconds": round(compile_seconds, 2),
    }, compiled


if __name__ == "__main__":
    main()
