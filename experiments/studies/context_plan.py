"""What one of eight devices holds and sends when it trains Wan 2.1's 1.3B model on clips: compiled, with no device.

    pip install 'nova-jax[plan]'
    python -m experiments.studies.context_plan                  every case, into results/context_plan.json
    python -m experiments.studies.context_plan target=h200:8 mesh.context=4 mesh.fsdp=2 batch_size=2

81 frames of 480 x 832 are 32,760 tokens. The program is a whole training step (flow matching, AdamW, EMA) in bfloat16,
with flash attention of cuDNN on H200s. `nova plan` prints the same for any experiment.
"""

import dataclasses
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax

from nova_jax import config as configs
from nova_jax import environment
from nova_jax.parallel import collectives, context
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.planning import hardware, plan, program, programs, roofline

RESULTS = pathlib.Path(__file__).parents[1] / "results" / "context_plan.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """How eight devices share clips of so many frames, height and width in pixels."""

    target: str = "h200:8"
    frames: int = 81
    height: int = 480
    width: int = 832
    batch_size: int = 1
    mesh: MeshConfig = MeshConfig(data=1, context=8)


CASES = (
    Case(),
    Case(batch_size=2, mesh=MeshConfig(data=1, fsdp=2, context=4)),
    Case(batch_size=8, mesh=MeshConfig(data=1, fsdp=8)),
    Case(target="v5p:2x2x2", batch_size=8, mesh=MeshConfig(data=1, fsdp=8)),
)


def compile_case(case: Case) -> dict[str, Any]:
    """Bytes on a device, exchanges and predicted seconds of one training step."""
    target = hardware.find(case.target)
    flash = ["model.attention_implementation=cudnn"] if target.platform == "cuda" else []
    config = programs.find("wan-1.3B", [*flash, f"batch_size={case.batch_size}"])
    latents = programs.presets.vae("wan2.1").latent_shape(case.frames, case.height, case.width)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, latent_shape=latents))
    mesh, example = case.mesh.make(hardware.devices(target)), programs.make_example(config)
    began = time.perf_counter()
    compiled = plan.compile_program(config, example, target, mesh, "train")
    seconds = time.perf_counter() - began
    text, held = compiled.as_text(), program.memory(compiled)
    kernels, found = program.read(text), collectives.read(text, mesh.shape)
    line = roofline.of_program(text, kernels, mesh.shape, target.chip)
    own_flops = plan.model_flops(config, example, "train", mesh) / mesh.size
    return {
        "target": case.target,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "ulysses_degree": context.ways(config.model.num_heads, case.mesh.context, case.mesh.tensor).width,
        "samples": case.batch_size,
        "tokens": latents[0] * latents[1] * latents[2] // 4,
        "compile_seconds": round(seconds, 1),
        "bytes_per_device": {**held._asdict(), "peak": held.peak, "memory": target.chip.memory},
        "flash_attention_kernels": program.count(kernels, "attention"),
        "sent": [
            {
                "kind": kind,
                "axes": list(axes),
                "bytes": round(sum(c.sent for c in found if (c.kind, c.axes) == (kind, axes))),
            }
            for kind, axes in sorted({(c.kind, c.axes) for c in found})
        ],
        "predicted_seconds": {name: round(value, 4) for name, value in line._asdict().items()},
        "predicted_step_s": round(line.seconds, 4),
        "predicted_mfu": round(line.mfu(own_flops, target.chip), 4),
    }


def main(arguments: list[str]) -> None:
    """One case, printed; or, without arguments, all of them, each in a process of its own, printed and written."""
    jax.config.update("jax_platforms", "cpu")  # of what is computed before anything is compiled
    if arguments:
        print(json.dumps(compile_case(configs.override(Case(), arguments))))
        return
    rows = []
    for case in CASES:
        values = [f"target={case.target}", f"batch_size={case.batch_size}"]
        values += [f"mesh.{axis}={size}" for axis, size in dataclasses.asdict(case.mesh).items()]
        command = [sys.executable, "-m", "experiments.studies.context_plan", *values]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(done.stdout.splitlines()[-1], flush=True)
    compilers = {name: importlib.metadata.version(name) for name in ("jax-cuda13-plugin", "libtpu")}
    record = {
        "command": "python -m experiments.studies.context_plan",
        "model": "wan-1.3B, 81 frames of 480 x 832, bfloat16, remat names, AdamW; flash attention on H200s alone",
        "versions": environment.versions() | compilers,
        "cases": rows,
    }
    RESULTS.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
