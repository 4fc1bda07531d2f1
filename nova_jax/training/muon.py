"""Muon (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks").

The momentum of a hidden matrix is replaced by the nearest semi-orthogonal matrix, found by Newton-Schulz iteration in
matrix products alone,

    X <- a X + (b A + c A A) X,   A = X X^T,   (a, b, c) = (3.4445, -4.7750, 2.0315),   starting from M / |M|_F

and scaled by 0.2 sqrt(max(rows, columns)), which gives updates of AdamW's usual size, so that its learning rate and
weight decay carry over (Liu et al. 2025, 2502.16982, section 2.2).

The iteration needs whole matrices, of which a mesh leaves every device a part. So matrices of one shape, those of all
layers together, are stacked and exchanged: an all-to-all over each axis that cuts them turns a part of all into all of
some, devices that hold the same parts take different matrices, and the way back is the same. No device repeats the work
of another, and none waits for another during the iteration.
"""

import collections
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

Side = tuple[int, tuple[str, ...]]  # rows or columns of a matrix, and the mesh axes that cut them
Sides = tuple[Side, Side]


class MuonState(NamedTuple):
    """The momentum of every matrix."""

    mu: optax.Updates


def scale_by_muon(momentum: float = 0.95, num_steps: int = 5, dtype: Any = jnp.float32) -> optax.GradientTransformation:
    """Nesterov momentum, orthogonalised over the last two axes and scaled to the size of an Adam update.

    Args:
        momentum: the part of it that a step keeps.
        num_steps: of the iteration.
        dtype: of the iteration, and of what devices exchange for it.
    """

    def init(params: optax.Params) -> MuonState:
        return MuonState(mu=jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: optax.Updates, state: Any, params: optax.Params | None = None
    ) -> tuple[optax.Updates, MuonState]:
        del params
        mu = jax.tree.map(lambda m, g: momentum * m + g, state.mu, updates)
        ahead = jax.tree.map(lambda m, g: (momentum * m + g).astype(dtype), mu, updates)
        turned = orthogonalize_tree(ahead, num_steps)
        return jax.tree.map(lambda m, old: _rms_factor(m) * m.astype(old.dtype), turned, mu), MuonState(mu)

    return optax.GradientTransformation(init, update)


def orthogonalize(matrix: Float[Array, "*l i o"], num_steps: int = 5) -> Float[Array, "*l i o"]:
    """Moves every singular value of M to about 1 (0.7 .. 1.2 after five steps), keeping its singular vectors.

    Products are taken in the dtype of M, its norm in float32.
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = (jnp.swapaxes(matrix, -1, -2) if is_tall else matrix).astype(jnp.float32)
    x = (x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)).astype(matrix.dtype)
    for _ in range(num_steps):
        gram = jnp.einsum("...io,...jo->...ij", x, x)
        x = a * x + jnp.einsum("...ij,...jo->...io", b * gram + c * jnp.einsum("...ij,...jk->...ik", gram, gram), x)
    return jnp.swapaxes(x, -1, -2) if is_tall else x


def orthogonalize_tree(tree: Any, num_steps: int = 5) -> Any:
    """`orthogonalize` of every leaf. Inside `jax.set_mesh` whole matrices are shared out over all devices.

    Leaves lie, and stay, where `parallel.rules` places parameters of their name.
    """
    sizes = {axis: size for axis, size in meshes.current_axes().items() if size > 1}
    function = functools.partial(orthogonalize, num_steps=num_steps)
    leaves, structure = jax.tree.flatten(tree)
    if not sizes or not leaves:
        return jax.tree.map(function, tree)
    specs = jax.tree.leaves(rules.specs(tree, sizes))
    sides = [_sides(leaf.shape, spec) for leaf, spec in zip(leaves, specs, strict=True)]
    groups: dict[Any, list[int]] = collections.defaultdict(list)
    for index, pair in enumerate(sides):
        groups[tuple(sorted(pair))].append(index)

    def local(*parts: Array) -> list[Array]:
        """Turns the matrices of a group alike, stacks them and takes them apart again."""
        done = list(parts)
        for group, members in groups.items():
            turned = [parts[i] if sides[i] == group else jnp.swapaxes(parts[i], -1, -2) for i in members]
            stacks = [part.reshape(-1, *part.shape[-2:]) for part in turned]
            results = _apply_to_whole(function, jnp.concatenate(stacks), group, sizes)
            ends = np.cumsum([len(stack) for stack in stacks])[:-1]
            for i, part, result in zip(members, turned, jnp.split(results, ends), strict=True):
                result = result.reshape(part.shape)
                done[i] = result if sides[i] == group else jnp.swapaxes(result, -1, -2)
        return done

    mapped = jax.shard_map(local, in_specs=tuple(specs), out_specs=specs, check_vma=False)
    return jax.tree.unflatten(structure, mapped(*leaves))


def _apply_to_whole(
    function: Callable[[Array], Array], parts: Float[Array, "s i o"], sides: Sides, sizes: Mapping[str, int]
) -> Float[Array, "s i o"]:
    """In `jax.shard_map`: `function` of a stack of which a device has a part of every matrix, and gets it back."""
    cuts = [(axes, dimension) for dimension, (_, axes) in enumerate(sides, 1) if axes]
    copies = tuple(axis for axis in sizes if not any(axis in axes for axes, _ in cuts))
    stack = jnp.pad(parts, ((0, -len(parts) % math.prod(sizes.values())), (0, 0), (0, 0)))
    if copies:
        share = len(stack) // math.prod(sizes[axis] for axis in copies)
        stack = jax.lax.dynamic_slice_in_dim(stack, jax.lax.axis_index(copies) * share, share)
    stack = jax.lax.optimization_barrier(stack)  # XLA's CPU back end does not exchange arrays of different layouts
    for axes, dimension in cuts:
        stack = jax.lax.all_to_all(stack, axes, 0, dimension, tiled=True)
    stack = function(stack)
    for axes, dimension in reversed(cuts):
        stack = jax.lax.all_to_all(stack, axes, dimension, 0, tiled=True)
    if copies:
        stack = jax.lax.all_gather(stack, copies, tiled=True)
    return stack[: len(parts)]


def _sides(shape: tuple[int, ...], spec: PartitionSpec) -> Sides:
    entries = (*spec, *(None,) * (len(shape) - len(spec)))
    rows, columns = ((entry,) if isinstance(entry, str) else tuple(entry or ()) for entry in entries[-2:])
    return (shape[-2], rows), (shape[-1], columns)


def _rms_factor(matrix: Array) -> float:
    """Turns a semi-orthogonal matrix into one whose elements have a root mean square of 0.2."""
    return 0.2 * max(matrix.shape[-2:]) ** 0.5
