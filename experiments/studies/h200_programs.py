"""Kernels and bytes of training steps compiled for an H200 that is not here, and what they let one expect.

    pip install 'nova-jax[plan]'
    python -m experiments.studies.h200_programs                        every case, into results/h200_programs.json
    python -m experiments.studies.h200_programs XL/2 --attention cudnn --unroll 28        one case, printed
    python -m experiments.studies.h200_programs XL/2 --attention cudnn --depth 4 --unroll 4 --table 20 --text step.hlo

A step is flow matching, AdamW (the reel: Muon) and EMA in bfloat16. Other traffic is that of all kernels but matrix
products and flash attention: `nova_jax.planning.program` says how it is counted.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments import reel
from nova_jax import environment
from nova_jax.diffusion import FlowMatching
from nova_jax.models import flops, presets
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.planning import hardware, program, roofline
from nova_jax.runs import build, train
from nova_jax.training import optimizer, step
from nova_jax.types import Batch, Conditioning

# Of the model's run on an H200: results/reel_h200.json.
REEL: dict[str, Any] = {"patch_size": (1, 1, 2), "width": 256, "depth": 10, "num_heads": 4}
RESULT = pathlib.Path(__file__).parents[1] / "results" / "h200_programs.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One training step.

    Attributes:
        model: wan-1.3B on a clip of 32,760 tokens, XL/2 on images of 256 tokens, or the reel on clips of 504.
        batch: samples; 0: 1, 256 and 64 of the three.
        attention: implementation; None: the default.
        unroll: layers per turn of the loop over depth.
        depth: layers; 0: those of the model.
        remat: policy.
    """

    model: str
    batch: int = 0
    attention: str | None = None
    unroll: int = 1
    depth: int = 0
    remat: str = "names"


CASES = (
    Case(model="wan-1.3B"),
    Case(model="wan-1.3B", attention="cudnn"),
    Case(model="wan-1.3B", attention="cudnn", unroll=30),
    Case(model="XL/2"),
    Case(model="XL/2", attention="cudnn"),
    Case(model="XL/2", attention="cudnn", unroll=28),
    Case(model="reel"),
    Case(model="reel", attention="cudnn", unroll=10),
)


def make(case: Case) -> tuple[build.Recipe, Batch, Any]:
    """The training step of a case, the shapes of its batch, and the network."""
    fields: dict[str, Any] = {"dtype": jnp.bfloat16, "scan_unroll": case.unroll, "remat": case.remat}
    fields |= {"attention_implementation": case.attention} | ({"depth": case.depth} if case.depth else {})
    if case.model == "reel":
        model = reel.make_model(**REEL | fields)
        ids, mask = map(jnp.asarray, model.text_encoder.tokenize([""]))
        example = Batch(jnp.zeros((1, 7, 9, 16, 16)), Conditioning(text_ids=ids, text_mask=mask))
        made = build.plain(model, reel.CONFIG.objective, reel.CONFIG.optimizer.ending_at(reel.STEPS), example, seed=0)
        return made, _rows(example, case.batch or 64), model
    dit = presets.dit(case.model, **fields)
    is_video = case.model.startswith("wan")
    latents = presets.vae("wan2.1").latent_shape(81, 480, 832) if is_video else (1, 32, 32, dit.in_channels)
    text = jnp.zeros((1, 512 if is_video else 32, dit.text_dim))
    cond = Conditioning(text=text, text_mask=jnp.ones(text.shape[:2], bool) if dit.masks_text else None)
    example = Batch(jnp.zeros((1, *latents)), cond)
    made = build.plain(dit, FlowMatching(num_bins=0), optimizer.AdamW(), example, seed=0)
    return made, _rows(example, case.batch or (1 if is_video else 256)), dit


def _rows(example: Batch, count: int) -> Batch:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype), example)


def compile_case(case: Case) -> tuple[str, program.Memory, dict[str, Any]]:
    """The text of the compiled program, its memory, and its row of the table."""
    target = hardware.find("h200:1")
    made, batch, model = make(case)
    mesh = MeshConfig().make(hardware.devices(target))
    rows = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=meshes.batch_sharding(mesh)), batch)
    began = time.perf_counter()
    train_step: Any = made.train_step
    with jax.set_mesh(mesh), hardware.standing_in(target):
        lowered = train_step.lower(step.plan(made.make_state, *made.arguments, mesh=mesh), rows)
        compiled = hardware.compile_for(target, lowered)
    text, held = compiled.as_text(), program.memory(compiled)
    return text, held, _row(case, text, held, model, batch) | {"compile_s": round(time.perf_counter() - began, 1)}


def _row(case: Case, text: str, held: program.Memory, model: Any, batch: Batch) -> dict[str, Any]:
    kernels, chip = program.read(text), hardware.CHIPS["h200"]
    line = roofline.of_kernels(kernels, chip)
    samples = batch.x0.shape[0]
    model_flops = flops.train_step_flops(train.forward_flops(model, batch), samples)
    depth = getattr(model, "dit", model).depth
    in_blocks = [kernel for kernel in kernels if "blocks/" in kernel.source]
    return {
        "model": case.model,
        "batch": samples,
        "attention": case.attention or "default",
        "unroll": case.unroll,
        "remat": case.remat,
        "depth": depth,
        "kernels_per_layer": round(program.count(in_blocks) / depth, 1),
        "kernels": program.count(kernels),
        "other_traffic_gb": round(program.traffic(kernels, "other") / 1e9, 1),
        "traffic_gb": round(program.traffic(kernels) / 1e9, 1),
        "product_pflop": round(program.flops(kernels) / 1e15, 4),
        "model_pflop": round(model_flops / 1e15, 4),
        "memory_gib": round(held.peak / 2**30, 2),
        "predicted_step_s": round(line.seconds, 4),
        "predicted_mfu": round(line.mfu(model_flops, chip), 4),
        "seconds_by_limit": {name: round(value, 4) for name, value in line._asdict().items()},
    }


def main() -> None:
    """One case, printed; or, without arguments, all of them, each in a process of its own, printed and written."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    for field in dataclasses.fields(Case)[1:]:
        parser.add_argument(
            f"--{field.name}", type=str if field.default is None else type(field.default), default=field.default
        )
    parser.add_argument("--table", type=int, default=0, help="lines of a table of kernels by place")
    parser.add_argument("--text", type=pathlib.Path, help="file for the program's HLO")
    asked = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")  # of what is computed before anything is compiled
    if asked.model is None:
        write_all()
        return
    text, _, row = compile_case(Case(**{f.name: getattr(asked, f.name) for f in dataclasses.fields(Case)}))
    print(json.dumps(row), flush=True)
    if asked.text:
        asked.text.write_text(text)
    for found in program.by_place(program.read(text))[: asked.table]:
        print(f"{found.traffic / 1e9:9.2f} GB {found.kernels:6} {found.kind:9} {found.place}")


def write_all() -> None:
    """Every case in a process of its own."""
    rows = []
    for case in CASES:
        options = [f"--{f.name}={getattr(case, f.name)}" for f in dataclasses.fields(case)[1:] if getattr(case, f.name)]
        command = [sys.executable, "-m", "experiments.studies.h200_programs", case.model, *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(rows[-1], flush=True)
    versions = environment.versions() | {"jax-cuda13-plugin": importlib.metadata.version("jax-cuda13-plugin")}
    facts = {"command": "python -m experiments.studies.h200_programs", "versions": versions, "rows": rows}
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
