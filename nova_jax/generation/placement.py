"""Sampling on a mesh: which devices, what goes onto them and what comes back.

    rows        images or clips of one call: over data and fsdp, padded until those divide them
    parameters  by the table of `parallel.rules`, over fsdp and tensor
    tokens      over context, as the network's own constraints say

Nothing that is sampled depends on the mesh but for the order of sums: noise belongs to the seed of a sample.
"""

import contextlib
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.core
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import record
from nova_jax.runs.load import TrainedRun

CHUNK = 16  # images per call: a fixed size, so that an image does not depend on how many there are
CHUNK_LATENTS = 4096  # of clips, as many per call as have so many latents (places, not channels), but at least one


def rows_per_call(latent_shape: tuple[int, ...], mesh: Mesh | None = None, *, answers: int = 1, wanted: int = 1) -> int:
    """How many images, or clips of this shape (f, h, w, c), are sampled together: on one device always as many.

    On a mesh as many for each of its data times fsdp parts, if that many are `wanted`; fewer share one such number,
    which grows until all rows of an evaluation divide: `answers` for each sample, two of them with guidance.
    """
    f, h, w, _ = latent_shape
    rows = CHUNK if f == 1 else min(CHUNK, max(1, CHUNK_LATENTS // (f * h * w)))
    parts = math.prod(mesh.shape[axis] for axis in meshes.BATCH_AXES) if mesh else 1
    if wanted >= rows * parts:
        return rows * parts
    unit = parts // math.gcd(parts, answers)
    return -(-rows // unit) * unit


def mesh_for(
    run_dir: str | pathlib.Path, wanted: meshes.MeshConfig = meshes.MeshConfig(), *, batch_size: int | None = None
) -> Mesh | None:
    """The mesh to sample a run on; None where there is one device.

    Where nothing is asked for, all devices over data. Clips that are too long to be sampled as many at a time as there
    are devices are cut over data with both answers of guidance, and each of them over context.

    Args:
        run_dir: a run folder.
        wanted: the sizes of its axes.
        batch_size: rows of a call where they are fixed; data cuts as many as it divides.

    Raises:
        FileNotFoundError: the folder is not a run folder.
        ValueError: the sizes do not fit the devices.
    """
    count = jax.device_count()
    if wanted == meshes.MeshConfig():
        shape = record.read(run_dir)["data"].get("latent_shape", (1, 1, 1, 1))
        rows = rows_per_call(tuple(shape))
        if batch_size or rows < count:
            data = math.gcd(batch_size or 2 * rows, count)
            wanted = meshes.MeshConfig(data=data, context=count // data)
    mesh = wanted.make()
    return mesh if count > 1 else None


def call(trained: TrainedRun, function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a jitted function on the mesh of a run; host arrays among its arguments go to every device.

    A run with `programs` finds there what it calls.
    """
    with scope(trained):
        placed = put(trained, arguments)
        found = function if trained.programs is None else trained.programs.find(function, placed)
        return found(*placed)


def scope(trained: TrainedRun) -> contextlib.AbstractContextManager[Any]:
    """A block in which programs are compiled for the mesh of a run, if it has one."""
    return contextlib.nullcontext() if trained.mesh is None else jax.set_mesh(trained.mesh)


def put(trained: TrainedRun, tree: Any) -> Any:
    """The arrays on every device of the run's mesh; those that lie on it already stay as they are."""
    mesh = trained.mesh
    if mesh is None:
        return tree
    everywhere, devices = NamedSharding(mesh, PartitionSpec()), set(mesh.devices.flat)

    def place(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and leaf.sharding.device_set == devices:
            return leaf
        return distributed.place(leaf, everywhere)

    return jax.tree.map(place, tree)


def constrain_rows(tree: Any, answers: int = 1) -> Any:
    """Pins the first axis of every array to data and fsdp in a function compiled on a mesh; the others stay free.

    With several `answers`, so many rows for each sample, the arrays lie as their samples do.
    """
    sizes = meshes.current_axes()

    def pin(leaf: Any) -> Any:
        if not sizes or not isinstance(leaf, jax.core.Tracer):
            return leaf
        rows = meshes.fitting_axes(leaf.shape[0] // answers, meshes.BATCH_AXES, sizes)
        free = [PartitionSpec.UNCONSTRAINED] * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(rows, *free))

    return jax.tree.map(pin, tree)


def on_host(array: Any) -> np.ndarray:
    """A result as a whole array on the host of every process; all of them must call it."""
    is_here = not isinstance(array, jax.Array) or array.is_fully_addressable
    return np.asarray(array if is_here else distributed.whole(array))
