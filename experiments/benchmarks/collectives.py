"""Bytes that training and sampling send between devices, against the formulas of `nova_jax.parallel.collectives`.

    python -m experiments.benchmarks.collectives PATH               writes the rows as JSON to PATH

A training step of a small `DiT` in float32, by gradient descent, Muon's iteration alone and guided sampling in four
steps are compiled for up to eight simulated devices of several meshes and read from their HLO. (AdamW and EMA send
nothing, clipping one number.) A row is a kind of exchange: bytes that a device sends, bytes of the formula, and their
ratio. Kinds below an eightieth of a program are left out; its row `all` has them.

Measured in 2026-12 with jax 0.10.2 (experiments/results/collectives.json): every kind within 6 % of its formula, all of
a program within 3 %; MB of the training step, and below of four guided evaluations of 1, 4, 4, 1, 1 and 1 samples:

                               measured   formula   ratio
    data=8                       34.01      34.01   1.000
    fsdp=8                       48.69      48.69   1.000
    tensor=8                     46.48      45.88   1.013
    data=2 fsdp=2 tensor=2       26.18      25.47   1.028

    data=2                        0.066      0.066  1.000
    data=8                        0.459      0.459  1.000
    fsdp=8                       61.00      61.00   1.000
    context=8                    53.42      53.41   1.000
    tensor=8                     11.12      11.01   1.010
    data=2 context=4             45.75      45.80   0.999
"""

import functools
import json
import math
import pathlib
import shlex
import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec

from nova_jax import environment, sampling
from nova_jax.diffusion import FlowMatching
from nova_jax.generation import program
from nova_jax.models.dit import DiT
from nova_jax.parallel import collectives, rules
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import build
from nova_jax.training import muon, step
from nova_jax.types import Batch, Conditioning

MODEL: Any = DiT(width=256, depth=4, num_heads=8, in_channels=16, text_dim=64)
BATCH, LATENTS, TEXT = 16, (1, 16, 16, 16), 16  # 64 tokens and 16 text states a sample
TOKENS = 64
MESHES = ({"data": 8}, {"fsdp": 8}, {"tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2})
SAMPLING_MESHES = ({"data": 2}, {"data": 8}, {"fsdp": 8}, {"context": 8}, {"tensor": 8}, {"data": 2, "context": 4})
STEPS = 4  # of a sampler that evaluates the network once in each


def compile_step(mesh: Any) -> tuple[Any, Any]:
    """The compiled training step of the model on a mesh, and the shapes of its parameters."""
    example, key = make_example(), jax.random.key(0)
    shapes = jax.eval_shape(functools.partial(build.init_params, MODEL, example), key)
    rows = meshes.batch_sharding(mesh)
    batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((BATCH, *a.shape[1:]), a.dtype, sharding=rows), example)
    network, objective, transform = build.as_network(MODEL), FlowMatching(num_bins=0), optax.sgd(1e-3)

    def descend(params: Any, batch: Batch, key: jax.Array) -> Any:
        loss = functools.partial(objective, network)
        return step.descend(loss, params, transform.init(params), transform, batch, key)

    with jax.set_mesh(mesh):
        placed = rules.shardings(shapes, mesh)
        params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, placed)
        compiled = jax.jit(descend, out_shardings=(placed, None, None)).lower(params, batch, key).compile()
    return compiled, shapes


def compile_muon(mesh: Any) -> tuple[Any, Any]:
    """Muon's iteration alone, compiled for a mesh, and the shapes of its matrices."""
    shapes = jax.eval_shape(functools.partial(build.init_params, MODEL, make_example()), jax.random.key(0))
    matrices = matrices_of(shapes)
    with jax.set_mesh(mesh):
        placed = rules.shardings(matrices, mesh)
        inputs = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), matrices, placed)
        return jax.jit(muon.orthogonalize_tree, out_shardings=placed).lower(inputs).compile(), matrices


def compile_sampling(mesh: Any, samples: int | None = None) -> tuple[Any, Any]:
    """Guided sampling, of as few samples as give each device a row, compiled for a mesh; the shapes of parameters."""
    draw = program.make_draw(MODEL, FlowMatching(num_bins=0), sampling.Euler(), "guided", None, LATENTS)
    shapes = jax.eval_shape(functools.partial(build.init_params, MODEL, make_example()), jax.random.key(0))
    everywhere, samples = NamedSharding(mesh, PartitionSpec()), samples or num_samples(mesh.shape)
    text = make_example().cond
    cond = jax.tree.map(lambda a: jnp.zeros((samples, *a.shape[1:]), a.dtype), text)
    inputs = cond, text, jnp.arange(samples, dtype=jnp.uint32), jnp.linspace(1, 0, STEPS + 1), jnp.float32(3)
    with jax.set_mesh(mesh):
        placed = rules.shardings(shapes, mesh)
        params = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, placed)
        inputs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=everywhere), inputs)
        return draw.lower(params, *inputs).compile(), shapes


def num_samples(sizes: Any) -> int:
    """Samples of a call, two rows of each evaluation for one: half as many as devices that share the rows."""
    return max(1, sizes["data"] * sizes["fsdp"] // 2)


def make_example(model: DiT = MODEL) -> Batch:
    """One sample of zeros."""
    text = Conditioning(text=jnp.zeros((1, TEXT, model.text_dim)), text_mask=jnp.ones((1, TEXT), bool))
    return Batch(jnp.zeros((1, *LATENTS)), text)


def of_step(params: Any, sizes: Any) -> dict[str, float]:
    """By kind, what the step has to send."""
    token = 4 * MODEL.width * BATCH / (sizes["data"] * sizes["fsdp"])
    return collectives.training_step(params, sizes, TOKENS * token, TEXT * token)


def of_muon(matrices: Any, sizes: Any) -> dict[str, float]:
    """By kind, what Muon has to send."""
    cuts, copies = [sizes[axis] for axis in ("fsdp", "tensor") if sizes[axis] > 1], sizes["data"]
    exchanged = collectives.muon(4 * count(matrices) / copies, cuts)
    gathered = collectives.muon(4 * count(matrices), cuts, copies) - exchanged
    return {**dict.fromkeys(collectives.KINDS, 0.0), "all-to-all": exchanged, "all-gather": gathered}


def of_sampling(params: Any, sizes: Any) -> dict[str, float]:
    """By kind, what a call of the sampling program has to send."""
    call = collectives.Call(num_samples(sizes), TOKENS, TEXT, 4 * math.prod(LATENTS), STEPS)
    return collectives.sampling(params, sizes, call)


PROGRAMS = {
    "training step": (compile_step, of_step, MESHES),
    "Muon": (compile_muon, of_muon, MESHES),
    "guided sampling": (compile_sampling, of_sampling, SAMPLING_MESHES),
}


def matrices_of(params: Any) -> dict[str, Any]:
    """What Muon takes, by name."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    named = {rules.name_of(path): leaf for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if name.startswith("blocks/") and name.endswith("kernel")}


def count(tree: Any) -> int:
    """Numbers in all arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def compare(name: str, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """A row for every kind of exchange in one program on one mesh."""
    mesh = meshes.MeshConfig(**{"data": 1, **sizes}).make(jax.devices()[: math.prod(sizes.values())])
    compile_program, formulas, _ = PROGRAMS[name]
    program, arrays = compile_program(mesh)
    found = collectives.read(program.as_text(), mesh.shape)
    expected = formulas(arrays, mesh.shape)
    whole = collectives.sent(found)
    pairs = {kind: (collectives.sent(found, kind), expected[kind]) for kind in collectives.KINDS}
    pairs = {kind: pair for kind, pair in pairs.items() if max(pair) > whole / 80}
    pairs["all"] = whole, sum(expected.values())
    return [
        {
            "program": name,
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
    """The rows with the command, the model and versions; other parts of the file stay."""
    file = pathlib.Path(path)
    record = {
        "command": shlex.join(["python", "-m", module, path]),
        "model": f"DiT width {MODEL.width}, depth {MODEL.depth}; batch {BATCH} of {TOKENS} tokens, {TEXT} text states",
        "environment": environment.describe(),
        "rows": rows,
    }
    record = (json.loads(file.read_text()) if file.is_file() else {}) | record
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Writes the rows of every mesh and program."""
    simulate_devices()
    rows = []
    for name, (_, _, shapes) in PROGRAMS.items():
        for sizes in shapes:
            rows += compare(name, sizes)
            print(json.dumps(rows[-1]), flush=True)
    write(sys.argv[1], "experiments.benchmarks.collectives", rows)


if __name__ == "__main__":
    main()
