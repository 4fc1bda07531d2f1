"""Shardings of activations, spoken in the words of the model.

Layers write `constrain(x, "batch", "tokens", "width")` and know nothing of meshes. In a function compiled inside
`jax.set_mesh(mesh)` the call pins x[B_(data,fsdp), N_context, D]; without a mesh it returns x itself, so every model
also runs alone on one device.
"""

import contextlib
import contextvars
import math
from collections.abc import Iterator

import jax
import jax.core
from jax.sharding import PartitionSpec
from jaxtyping import Array

from nova_jax.parallel import mesh as meshes

LOGICAL_AXES = {
    "batch": meshes.BATCH_AXES,
    "tokens": ("context",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "width": (),
    "head_dim": (),
    "text": (),
    "channels": (),
    "frames": (),
    "height": (),
    "width_px": (),
}

_noted: contextvars.ContextVar[list[str] | None] = contextvars.ContextVar("noted", default=None)


@contextlib.contextmanager
def noting() -> Iterator[list[str]]:
    """Collects what is to be known of the programs that are traced inside, in sentences.

    One for each size other than the batch's that its axes do not cut: such a dimension stays whole, and every device
    along those axes does the same work. And what else is given to `note`: the attention that was chosen.
    """
    found: list[str] = []
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def constrain(x: Array, *logical_axes: str | None) -> Array:
    """Pins x to the mesh of `jax.set_mesh`, one logical axis (or None) per dimension; no-op without a mesh.

    A mesh axis that does not divide its dimension is left out (a batch of one on eight devices stays whole), and so are
    axes already mapped by an enclosing `jax.shard_map`. Arrays outside `jax.jit` stay where they are.

    Raises:
        ValueError: an unknown name, or not one name per dimension.
    """
    if unknown := [axis for axis in logical_axes if axis is not None and axis not in LOGICAL_AXES]:
        raise ValueError(f"unknown logical axes {unknown}: use {', '.join(LOGICAL_AXES)} or None")
    if len(logical_axes) != x.ndim:
        raise ValueError(f"{len(logical_axes)} logical axes {logical_axes} for an array of shape {x.shape}")
    sizes = meshes.current_axes()
    if not sizes or not isinstance(x, jax.core.Tracer):
        return x
    wanted = [LOGICAL_AXES[axis] if axis else () for axis in logical_axes]
    for name, n, axes in zip(logical_axes, x.shape, wanted, strict=True):
        if name != "batch" and n % math.prod(sizes.get(axis, 1) for axis in axes):
            note(meshes.misfit(f"the size {n} of {name}", n, axes, sizes))
    spec = [meshes.fitting_axes(n, axes, sizes) for n, axes in zip(x.shape, wanted, strict=True)]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def note(sentence: str) -> None:
    """Adds a sentence to what `noting` collects, once."""
    found = _noted.get()
    if found is not None and sentence not in found:
        found.append(sentence)
