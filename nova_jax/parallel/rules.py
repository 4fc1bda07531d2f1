"""Where every parameter lives: one table from path pattern to PartitionSpec.

The pattern is searched in the path of a leaf, for example `opt_state/0/mu/blocks/self_attention/query/kernel`.
Optimizer moments, EMA and teachers carry the path of their parameter inside their own: one table places all of them.

A spec names the *last* dimensions; leading ones (depth of stacked blocks, time and space of convolutions) stay whole.
Notation of the comments: W[D_fsdp, F_tensor] is a matrix with D cut over the fsdp axis and F over the tensor axis.
Devices that share the tokens of a sample share its parameters as well: fsdp stands for the axes (fsdp, context).
"""

import collections
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nova_jax.parallel import mesh as meshes

Rules = Sequence[tuple[str, P]]

FSDP = ("fsdp", "context")
COLUMN = P(FSDP, "tensor")  # W[D_fsdp, F_tensor]: features come out cut over tensor
ROW = P("tensor", FSDP)  # W[F_tensor, D_fsdp]: contracts them again, one all-reduce per pair of matrices
WIDTH = P(None, (*FSDP, "tensor"))  # W[I, D_(fsdp,tensor)]: few inputs or a table of rows; memory is all that counts

RULES: Rules = (
    # Transformer blocks of the DiT and of text encoders; kernels [L, in, out].
    (r"attention/(query|key|value)/kernel$", COLUMN),
    (r"attention/(query|key|value)/bias$", P("tensor")),
    (r"attention/out/kernel$", ROW),
    (r"mlp/(up|gate)/kernel$", COLUMN),
    (r"mlp/(up|gate)/bias$", P("tensor")),
    (r"mlp/down/kernel$", ROW),
    # Embeddings of time, guidance and text: two-layer MLPs; and the shared modulation.
    (r"(^|/)\w+_embed\w*/in/kernel$", COLUMN),
    (r"(^|/)\w+_embed\w*/in/bias$", P("tensor")),
    (r"(^|/)\w+_embed\w*/out/kernel$", ROW),
    (r"time_modulation\w*/kernel$", COLUMN),
    # The ends of the DiT: too small for the tensor axis, which would exchange tokens for them.
    (r"patch_embed\w*/kernel$", P(None, FSDP)),
    (r"(^|/)head/kernel$", P(FSDP, None)),
    (r"relative_bias/embedding$", P(None, "tensor")),
    (r"embedding$", WIDTH),
    # Convolutions of the VAE and its discriminator, [t, h, w, in, out].
    (r"(^|/)(encoder|decoder|discriminator)/.*kernel$", P((*FSDP, "tensor"))),
    # Vectors, and small state of optimizers: whole everywhere.
    (r"(^|/)(bias|scale|gamma|modulation|head_modulation)$", P()),
    (r"(^|/)ns_coeffs$", P()),
)


class Placement(NamedTuple):
    """Where the table puts one array: the spec its rule asks for, and what the mesh and the shape allow."""

    path: str
    shape: tuple[int, ...]
    wanted: P
    spec: P

    @property
    def fell_back(self) -> bool:
        """Whether some dimension was not divisible by the axes that should cut it."""
        return self.wanted != self.spec

    @property
    def is_sharded(self) -> bool:
        """Whether any axis cuts the array."""
        return any(axes is not None for axes in self.spec)


def specs(tree: Any, sizes: Mapping[str, int], rules: Rules = RULES) -> Any:
    """The tree of PartitionSpecs, for mesh axes of these sizes."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _place(name_of(path), tuple(leaf.shape), sizes, rules).spec, tree
    )


def shardings(tree: Any, mesh: Mesh, rules: Rules = RULES) -> Any:
    """The tree of NamedShardings for a tree of arrays or ShapeDtypeStructs (parameters or a whole train state).

    Raises:
        ValueError: no rule matches a leaf of one or more dimensions; its path and shape are named.
    """
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs(tree, mesh.shape, rules), is_leaf=_is_spec)


def constrain_tree(tree: Any, rules: Rules = RULES) -> Any:
    """Pins every leaf to its rule in a function compiled inside `jax.set_mesh`; no-op without a mesh.

    On gradients it turns the all-reduce of whole gradients into a reduce-scatter of the part each device owns.
    """
    sizes = meshes.current_axes()
    if not sizes:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs(tree, sizes, rules))


def placements(tree: Any, mesh: Mesh, rules: Rules = RULES) -> list[Placement]:
    """What the table does with every leaf, for reports and for tests that nothing is left whole by accident."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [_place(name_of(path), tuple(leaf.shape), mesh.shape, rules) for path, leaf in leaves]


def unsharded(tree: Any, mesh: Mesh, rules: Rules = RULES) -> list[Placement]:
    """The arrays a reader of the mesh would expect to be cut and that are not, or not as their rule says.

    That is: every leaf that fell back because a dimension does not divide, and every large leaf (65,536 elements and a
    thousandth of the tree) that its rule keeps whole while the mesh has an axis to cut it.
    """
    can_cut = mesh.shape["fsdp"] * mesh.shape["context"] * mesh.shape["tensor"] > 1
    found = placements(tree, mesh, rules)
    large = max(1 << 16, sum(math.prod(p.shape) for p in found) / 1000)
    return [p for p in found if p.fell_back or (can_cut and not p.is_sharded and math.prod(p.shape) >= large)]


def misfits(params: Any, mesh: Mesh, rules: Rules = RULES) -> list[str]:
    """Sentences for the start of a run: axes that cut no parameter, and dimensions that their axes do not divide."""
    found = placements(params, mesh, rules)
    cutting = {axis for p in found for axis in axes_of(p.spec)}
    idle = [axis for axis in ("fsdp", "tensor") if mesh.shape[axis] > 1 and axis not in cutting]
    notes = [f"mesh.{axis}={mesh.shape[axis]} cuts no parameter of this model: use mesh.{axis}=1" for axis in idle]
    paths: dict[Any, list[str]] = collections.defaultdict(list)
    for p in found:
        wanted, spec = ((*entries, *(None,) * (len(p.shape) - len(entries))) for entries in (p.wanted, p.spec))
        for size, axes, kept in zip(p.shape, wanted, spec, strict=True):
            if axes != kept:
                paths[size, axes_of(P(axes))].append(p.path)
    for (size, axes), names in paths.items():
        others = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        notes.append(meshes.misfit(f"the size {size} of {names[0]}{others}", size, axes, mesh.shape))
    return notes


def bytes_per_device(tree: Any, mesh: Mesh, rules: Rules = RULES) -> int:
    """Bytes of the tree that one device holds."""

    def local(leaf: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(tuple(leaf.shape))) * leaf.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(local, tree, shardings(tree, mesh, rules))))


def _place(name: str, shape: tuple[int, ...], sizes: Mapping[str, int], rules: Rules) -> Placement:
    rule = next((spec for pattern, spec in rules if re.search(pattern, name)), None) if shape else P()
    if rule is None:
        raise ValueError(
            f"no sharding rule matches parameter {name} of shape {shape}: add its pattern to parallel/rules.py"
        )
    if len(rule) > len(shape):
        raise ValueError(
            f"the sharding rule {rule} of parameter {name} needs {len(rule)} dimensions, its shape is {shape}"
        )
    padded = (None,) * (len(shape) - len(rule)) + tuple(rule)
    axes = [(entry,) if isinstance(entry, str) else entry or () for entry in padded]
    wanted = [_cutting(names, sizes) for names in axes]
    spec = [meshes.fitting_axes(n, names, sizes) for n, names in zip(shape, axes, strict=True)]
    return Placement(path=name, shape=shape, wanted=_trimmed(wanted), spec=_trimmed(spec))


def _cutting(names: Sequence[str], sizes: Mapping[str, int]) -> tuple[str, ...] | None:
    """The axes of more than one device."""
    return tuple(name for name in names if sizes.get(name, 1) > 1) or None


def _trimmed(entries: Sequence[tuple[str, ...] | None]) -> P:
    """A spec in its canonical form: single axes bare, no trailing None."""
    bare = [entry[0] if entry and len(entry) == 1 else entry for entry in entries]
    while bare and bare[-1] is None:
        bare.pop()
    return P(*bare)


def axes_of(spec: P) -> tuple[str, ...]:
    """The mesh axes that a spec names."""
    return tuple(axis for entry in spec if entry for axis in ((entry,) if isinstance(entry, str) else entry))


def name_of(path: tuple[Any, ...]) -> str:
    """The name of a leaf, such as blocks/mlp/up/kernel, from its path as `jax.tree_util` gives it."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_spec(value: Any) -> bool:
    return isinstance(value, P)
