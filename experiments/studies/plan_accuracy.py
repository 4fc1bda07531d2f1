"""How well a plan knows a program that it has not compiled whole, and what planning a large one takes.

    pip install 'nova-jax[plan]'
    python -m experiments.studies.plan_accuracy                 every case, into results/plan_accuracy.json
    python -m experiments.studies.plan_accuracy XL/2 data=8     one case, printed

A case is a training step on eight H200s with cuDNN attention. Where every layer is unrolled (XL/2) the plan compiles
two shallow networks and draws a line through their numbers, and the whole program is compiled to compare; where depth
is a loop (Wan) the plan compiles the whole program itself. FLOPs are those of the closed form against those of the
products in the program; flash attention computes the scores a second time on its way back, which model FLOPs do not
count. Last, `nova plan` of the 14B model on 256 devices: seconds and largest memory.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time
from typing import Any

import jax

from nova_jax import environment
from nova_jax.models import presets
from nova_jax.planning import hardware, plan, program, programs

RESULT = pathlib.Path(__file__).parents[1] / "results" / "plan_accuracy.json"
TARGET = "h200:8"
CASES = (("XL/2", "data=8"), ("XL/2", "fsdp=8"), ("wan-1.3B", "fsdp=8"), ("wan-1.3B", "fsdp=2,context=4"))
LARGE = ("wan-14B", "batch_size=32", "model.attention_implementation=cudnn", "--target", "h200:256")
LARGE_MESHES = ("--mesh", "fsdp=32,context=8", "--only", "train")


def compare(model: str, mesh_text: str) -> dict[str, Any]:
    """The plan's numbers over those of the whole program, and the seconds that each took."""
    unroll = 1 if model.startswith("wan") else presets.DIT[model]["depth"]
    fields = [f"model.scan_unroll={unroll}", "model.attention_implementation=cudnn"]
    config, target = programs.find(model, fields), hardware.find(TARGET)
    mesh = plan.read_mesh(mesh_text).make(hardware.devices(target))
    example, began = programs.make_example(config), time.perf_counter()
    planned = plan.measure(config, example, target, mesh, "train") if unroll > 1 else None
    middle = time.perf_counter()
    compiled = plan.compile_program(config, example, target, mesh, "train")
    whole, end = plan.costs_of(compiled, mesh, target), time.perf_counter()
    planned = planned or whole
    repeated = sum(k.flops * k.times for k in program.read(compiled.as_text()) if k.is_backward) / 5
    closed_form = plan.model_flops(config, example, "train", mesh) / mesh.size
    return {
        "model": model,
        "target": TARGET,
        "mesh": mesh_text,
        "batch": config.batch_size,
        "unroll": unroll,
        "bytes_per_device": {"plan": round(planned.peak), "whole": round(whole.peak)},
        "bytes_ratio": round(planned.peak / whole.peak, 4),
        "flops_per_device": {"closed_form": closed_form, "whole": whole.flops - repeated},
        "flops_ratio": round(closed_form / (whole.flops - repeated), 4),
        "kernels_ratio": round(sum(planned.kernels.values()) / sum(whole.kernels.values()), 4),
        "traffic_ratio": round(sum(planned.traffic.values()) / sum(whole.traffic.values()), 4),
        "sent_ratio": round(sum(planned.sent.values()) / sum(whole.sent.values()), 4),
        "seconds_ratio": round(planned.seconds.seconds / whole.seconds.seconds, 4),
        "plan_compile_s": round((middle if unroll > 1 else end) - began, 1),
        "whole_compile_s": round(end - middle, 1),
    }


def plan_large() -> dict[str, Any]:
    """Seconds and memory of a plan of 14B parameters on 256 devices, and what it prints."""
    command = ["from nova_jax.cli import main; main()", "plan", *LARGE, *LARGE_MESHES]
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", *command], stdout=subprocess.PIPE, text=True, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "command": " ".join(["nova", *command[1:]]),
        "seconds": round(time.perf_counter() - began, 1),
        "peak_gib": round(peak / 2**30, 2),
        "output": done.stdout.strip().splitlines(),
    }


def main(arguments: list[str]) -> None:
    """One case, printed; or all of them, each in a process of its own, printed and written."""
    jax.config.update("jax_platforms", "cpu")  # of what is computed before anything is compiled
    if arguments:
        print(json.dumps(compare(*arguments)))
        return
    large, rows = plan_large(), []
    print(json.dumps(large, indent=1), flush=True)
    for case in CASES:
        command = [sys.executable, "-m", "experiments.studies.plan_accuracy", *case]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(done.stdout.splitlines()[-1], flush=True)
    record = {
        "command": "python -m experiments.studies.plan_accuracy",
        "versions": environment.versions(),
        "machine": "two CPU cores",
        "cases": rows,
        "large": large,
    }
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
