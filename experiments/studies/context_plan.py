"""What one of eight H200s holds and sends when it trains Wan 2.1's 1.3B model on one clip: compiled, with no GPU.

    pip install --no-deps jax-cuda13-plugin==VERSION jax-cuda13-pjrt==VERSION      VERSION: that of jax
    python -m experiments.studies.context_plan                  every case, into results/context_plan_h200.json
    python -m experiments.studies.context_plan mesh.context=4 mesh.fsdp=2 batch_size=2

81 frames of 480 x 832 are 32,760 tokens. The program is a whole training step (flow matching, AdamW, EMA) in bfloat16
with flash attention of cuDNN. The GPU compiler does not refuse what does not fit: compare the bytes with 141 GB.
"""

import collections
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import re
import sys
import time
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Without a GPU nothing can be tried out, so kernels are not tuned.
os.environ.setdefault("XLA_FLAGS", "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false")

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as kernels
from jax.experimental import topologies

from nova_jax import config as configs
from nova_jax.diffusion import FlowMatching
from nova_jax.models import presets
from nova_jax.parallel import context
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.runs import build
from nova_jax.training import optimizer, step
from nova_jax.types import Batch, Conditioning

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "context_plan_h200.json"
H200 = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
 shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000
 l2_cache_size: 62914560 clock_rate_ghz: 1.98 device_memory_size: 149250113536 shared_memory_per_block_optin: 232448
 registers_per_core_limit: 65536 registers_per_block_limit: 65536 cuda_compute_capability { major: 9 } }
 platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }
 device_description_str: "NVIDIA H200" """
KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
BYTES = {"bf16": 2, "f32": 4, "s32": 4, "u32": 4, "pred": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One case: a clip of so many frames, height and width in pixels, and how eight devices share it."""

    frames: int = 81
    height: int = 480
    width: int = 832
    batch_size: int = 1
    text_length: int = 512
    mesh: MeshConfig = MeshConfig(data=1, context=8)


CASES = (Plan(), Plan(batch_size=2, mesh=MeshConfig(data=1, fsdp=2, context=4)))


def compile_case(plan: Plan) -> dict[str, Any]:
    """Bytes on a device and collectives of one training step."""
    dit = presets.dit("wan-1.3B", dtype=jnp.bfloat16, attention_implementation="cudnn")
    latents = presets.vae("wan2.1").latent_shape(plan.frames, plan.height, plan.width)
    example = Batch(jnp.zeros((1, *latents)), Conditioning(text=jnp.zeros((1, plan.text_length, dit.text_dim))))
    made = build.plain(dit, FlowMatching(num_bins=0), optimizer.AdamW(), example, seed=0)
    mesh = plan.mesh.make(topologies.get_topology_desc("", "cuda", target_config=H200, topology="1x1x8").devices)
    sharding = meshes.batch_sharding(mesh)
    batch = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((plan.batch_size, *a.shape[1:]), a.dtype, sharding=sharding), example
    )
    began = time.perf_counter()
    with jax.set_mesh(mesh):
        step_fn: Any = made.train_step
        compiled = step_fn.lower(step.plan(made.make_state, *made.arguments, mesh=mesh), batch).compile()
    memory: Any = compiled.memory_analysis()
    return {
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "ulysses_degree": context.ways(dit.num_heads, plan.mesh.context, plan.mesh.tensor).width,
        "samples": plan.batch_size,
        "tokens": latents[0] * latents[1] * latents[2] // 4,
        "compile_seconds": round(time.perf_counter() - began, 1),
        "bytes_per_device": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "results_outside_arguments": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        },
        "flash_attention_kernels": compiled.as_text().count('custom_call_target="__cudnn$fmha'),
        "collectives_in_text": collectives(compiled.as_text()),
    }


def collectives(program: str) -> dict[str, dict[str, int]]:
    """How often each kind stands in a compiled program, and the bytes of its results; loops over depth count once."""
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    for result, kind in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", program):
        sizes = [
            BYTES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
            for dtype, shape in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", result)
        ]
        found[kind]["count"] += 1
        found[kind]["bytes"] += max(sizes)
    return dict(found)


def main(arguments: list[str]) -> None:
    """One case, printed; or, without arguments, all of them, printed and written."""
    # Both ask the GPU that is not here; H200 above says what they would find.
    kernels.check_cudnn_version = lambda: 91000
    kernels.check_compute_capability = lambda capability: True
    if arguments:
        print(json.dumps(compile_case(configs.override(Plan(), arguments)), indent=1))
        return
    rows = [compile_case(plan) for plan in CASES]
    record = {
        "command": "python -m experiments.studies.context_plan",
        "model": "wan-1.3B, 81 frames of 480 x 832, bfloat16, cuDNN attention, remat names, AdamW",
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "jax-cuda13-plugin")},
        "cases": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(sys.argv[1:])
