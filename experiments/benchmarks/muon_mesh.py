"""What Muon sends and computes on a mesh: whole matrices shared out, against two ways without.

    python -m experiments.benchmarks.muon_mesh PATH      writes the rows as JSON to PATH

Newton-Schulz alone is compiled for eight simulated devices, on the matrices of a small `DiT` that lie as parameters do:
`bytes_per_parameter` are those that a device sends, `work` its FLOPs over those of one device alone, `exchanges` how
many collectives run. `shared_out` is `nova_jax.training.muon`, `per_leaf` its iteration with the exchange left to the
compiler, and `optax` is `optax.contrib.scale_by_muon` with dimension numbers.

Measured in 2026-12 with jax 0.10.2 (experiments/results/muon_mesh.json), bytes a parameter and work:

                               shared_out        per_leaf, optax
    data=8                     3.50  0.125        0.00  1.000
    fsdp=8                     0.88  0.126       43.75  0.167
    tensor=8                   0.88  0.126       24.06  0.292
    data=2 fsdp=2 tensor=2     1.50  0.125       38.75  0.174
"""

import functools
import json
import sys
from typing import Any

import jax
import optax.contrib

from experiments.benchmarks import collectives as programs
from nova_jax.parallel import collectives, rules
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import build
from nova_jax.training import muon


def by_optax(matrices: Any) -> Any:
    """The iteration of optax, on stacked matrices."""
    numbers = jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(-2, -1), matrices)
    transform = optax.contrib.scale_by_muon(weight_dimension_numbers=numbers)
    return transform.update(matrices, transform.init(matrices))[0]


WAYS = {
    "shared_out": muon.orthogonalize_tree,
    "per_leaf": functools.partial(jax.tree.map, muon.orthogonalize),
    "optax": by_optax,
}


def compare(sizes: dict[str, int]) -> list[dict[str, Any]]:
    """A row for every way on one mesh."""
    mesh = meshes.MeshConfig(**{"data": 1, **sizes}).make()
    params = jax.eval_shape(
        functools.partial(build.init_params, programs.MODEL, programs.make_example()), jax.random.key(0)
    )
    matrices = programs.matrices_of(params)
    placed = rules.shardings(matrices, mesh)
    inputs = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), matrices, placed)
    rows = []
    for name, function in WAYS.items():
        alone: Any = jax.jit(function).lower(matrices).compile().cost_analysis()
        with jax.set_mesh(mesh):
            program: Any = jax.jit(function, out_shardings=placed).lower(inputs).compile()
        found = collectives.read(program.as_text(), mesh.shape)
        row = {
            "bytes_per_parameter": collectives.sent(found) / programs.count(matrices),
            "work": program.cost_analysis()["flops"] / alone["flops"],
            "exchanges": sum(c.times for c in found),
        }
        rows.append({"way": name, "mesh": sizes, **row})
    return rows


def main() -> None:
    """Writes the rows of every mesh."""
    programs.simulate_devices()
    rows = []
    for sizes in programs.MESHES:
        rows += compare(sizes)
        print(*map(json.dumps, rows[-len(WAYS) :]), sep="\n", flush=True)
    programs.write(sys.argv[1], "experiments.benchmarks.muon_mesh", rows)


if __name__ == "__main__":
    main()
