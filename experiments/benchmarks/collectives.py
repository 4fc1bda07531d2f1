"""Bytes that a training step sends between devices, against the formulas of `nova_jax.parallel.collectives`.

    python -m experiments.benchmarks.collectives PATH               writes the rows as JSON to PATH

The step of a small `DiT` in float32 is compiled for eight simulated devices of several meshes, and read from its HLO. A
row is a kind of exchange: bytes that a device sends, bytes of the formula, and their ratio. Kinds below a hundredth of
the program are left out; the row `all` has them.

EEE
"""

import json
import pathlib
import shlex
import sys
from typing import Any

import jax
import jax.numpy as jnp

from nova_jax import environment
from nova_jax.diffusion import FlowMatching
from nova_jax.models.dit import DiT
from nova_jax.parallel import collectives, rules
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import build
from nova_jax.training import optimizer, step
from nova_jax.types import Batch, Conditioning

MODEL = DiT(width=256, depth=4, num_heads=8, in_channels=16, text_dim=64)
BATCH, LATENTS, TEXT = 16, (1, 16, 16, 16), 16  # 64 tokens and 16 text states a sample
TOKENS = 64
MESHES = ({"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2})


def compile_step(choice: optimizer.Optimizer, mesh: Any, model: DiT = MODEL) -> tuple[Any, Any]:
    """The compiled training step of a DiT on a mesh, and the shapes of its parameters."""
    example = make_example(model)
    made = build.plain(model, FlowMatching(num_bins=0), choice, example, seed=0)
    state = step.plan(made.make_state, *made.arguments, mesh=mesh)
    rows = meshes.batch_sharding(mesh)
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((BATCH, *a.shape[1:]), a.dtype, sharding=rows), example)
    with jax.set_mesh(mesh):
        return made.train_step.lower(state, batch).compile(), state.params


def make_example(model: DiT = MODEL) -> Batch:
    """One sample of zeros."""
    text = Conditioning(text=jnp.zeros((1, TEXT, model.text_dim)), text_mask=jnp.ones((1, TEXT), bool))
    return Batch(jnp.zeros((1, *LATENTS)), text)


def expected_of(params: Any, sizes: Any, choice: optimizer.Optimizer, model: DiT = MODEL) -> dict[str, float]:
    """By kind, what the step has to send."""
    token = 4 * model.width * BATCH / (sizes["data"] * sizes["fsdp"])
    sent = collectives.training_step(params, sizes, TOKENS * token, TEXT * token)
    if isinstance(choice, optimizer.Muon):
        cuts = [sizes[axis] for axis in ("fsdp", "tensor") if sizes[axis] > 1]
        size = 4 * count(matrices_of(params))
        exchanged = collectives.muon(size, cuts)
        sent["all-to-all"] += exchanged / sizes["data"]
        sent["all-gather"] += collectives.muon(size, cuts, sizes["data"]) - exchanged / sizes["data"]
    return sent


def matrices_of(params: Any) -> dict[str, Any]:
    """What Muon takes, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {rules.name_of(path): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if name.startswith("blocks/") and name.endswith("kernel")}


def count(tree: Any) -> int:
    """Numbers in all arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def compare(choice: optimizer.Optimizer, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """A row for every kind of exchange in the step on one mesh."""
    mesh = meshes.MeshConfig(**{"data": 1, **sizes}).make()
    program, params = compile_step(choice, mesh)
    found = collectives.read(program.as_text(), mesh.shape)
    expected = expected_of(params, mesh.shape, choice)
    whole = collectives.sent(found)
    pairs = {kind: (collectives.sent(found, kind), expected[kind]) for kind in collectives.KINDS}
    pairs = {kind: pair for kind, pair in pairs.items() if max(pair) > whole / 100}
    pairs["all"] = whole, sum(expected.values())
    program_name = f"train step, {type(choice).__name__}"
    return [
        {
            "program": program_name,
            "mesh": sizes,
            "kind": kind,
            "bytes": measured,
            "formula": formula,
            "ratio": measured / formula if formula else None,
        }
        for kind, (measured, formula) in pairs.items()
    ]


def simulate_devices() -> None:
    """Eight CPU devices, whose machine code, which never runs, is not optimised."""
    jax.config.update("jax_num_cpu_devices", 8)
    jax.config.update("jax_disable_most_optimizations", True)


def write(path: str, module: str, rows: list[dict[str, Any]]) -> None:
    """The rows with the command, the model and versions."""
    record = {
        "command": shlex.join(["python", "-m", module, path]),
        "model": f"DiT width {MODEL.width}, depth {MODEL.depth}; batch {BATCH} of {TOKENS} tokens, {TEXT} text states",
        "environment": environment.describe(),
        "rows": rows,
    }
    pathlib.Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the rows of every mesh and optimizer."""
    simulate_devices()
    rows = []
    for sizes in MESHES:
        for choice in (optimizer.AdamW(), optimizer.Muon()):
            rows += compare(choice, sizes)
            print(json.dumps(rows[-1]), flush=True)
    write(sys.argv[1], "experiments.benchmarks.collectives", rows)


if __name__ == "__main__":
    main()
