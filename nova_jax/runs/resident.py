"""Training data that lives on the devices: put there once, its batches picked inside the training step.

    batch = prepare(table[rows])        rows: which samples the stream holds at its position

The order, the position and what a resumed run sees are those of the same data on the host. The host sends four bytes a
sample, and may dispatch several steps at once. Every device of the data and fsdp axes holds an equal share of the
samples; it looks up those that it has, zeros for the others, and a sum over devices hands each its rows of the batch.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Integer

from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes
from nova_jax.runs.config import OnDevice
from nova_jax.training import step
from nova_jax.types import TrainState, TrainStep

Table = Any  # a tree of arrays, first axis samples


def place(table: Table, mesh: Mesh) -> Table:
    """The samples over the devices that share a batch, filled up with zeros to equal shares."""
    sharding = meshes.batch_sharding(mesh)
    ways = math.prod(mesh.shape[axis] for axis in meshes.BATCH_AXES)

    def put(array: np.ndarray) -> jax.Array:
        missing = -len(array) % ways
        return distributed.place(np.pad(array, ((0, missing), *[(0, 0)] * (array.ndim - 1))), sharding)

    return jax.tree.map(put, table)


def pick(table: Table, rows: Integer[Array, " b"]) -> Table:
    """Samples of a table that `place` has put on the mesh of `jax.set_mesh`; the batch is cut as the table is."""
    axes = tuple(axis for axis in meshes.BATCH_AXES if meshes.current_axes().get(axis, 1) > 1)
    if not axes:
        return jax.tree.map(lambda array: array[rows], table)

    def on_device(table: Table, rows: Array) -> Table:
        def look_up(share: Array) -> Array:
            places = rows - jax.lax.axis_index(axes) * len(share)
            is_here = (places >= 0) & (places < len(share))
            found = share[jnp.clip(places, 0, len(share) - 1)].astype(jnp.uint8 if share.dtype == bool else share.dtype)
            found = jnp.where(is_here.reshape(-1, *[1] * (share.ndim - 1)), found, jnp.zeros((), found.dtype))
            return jax.lax.psum_scatter(found, axes, tiled=True).astype(share.dtype)

        return jax.tree.map(look_up, table)

    inside = jax.shard_map(on_device, in_specs=(PartitionSpec(axes), PartitionSpec()), out_specs=PartitionSpec(axes))
    return inside(table, rows)


def make_step(train_step: TrainStep, data: OnDevice, table: Table, steps: int) -> TrainStep:
    """A training step whose batch is rows of the table: (b,), or (steps, b) where one dispatch is several steps."""
    inner = step.uncompiled(train_step)

    def one(state: TrainState, rows: Array, table: Table) -> tuple[TrainState, Any]:
        batch = jax.lax.optimization_barrier(data.prepare(pick(table, rows)))  # else it is rounded as what it joins
        return inner(state, batch)

    def several(state: TrainState, rows: Array, table: Table) -> tuple[TrainState, Any]:
        return jax.lax.scan(lambda state, rows: one(state, rows, table), state, rows)

    of_rows = jax.jit(one if steps == 1 else several, donate_argnums=0, compiler_options=step.COMPILER_OPTIONS)
    return lambda state, batch: of_rows(state, batch, table)


def batches(data: OnDevice, mesh: Mesh, batch_size: int, steps: int) -> Callable[[int], Iterator[jax.Array]]:
    """Start position -> which samples each batch holds, on every device; (steps, b) where a dispatch is several."""
    sharding = NamedSharding(mesh, PartitionSpec())

    def stream(start: int) -> Iterator[jax.Array]:
        records = data.records(start, batch_size)
        while True:
            rows = np.asarray([next(records) for _ in range(steps)], np.int32)
            yield distributed.place(rows[0] if steps == 1 else rows, sharding)

    return stream
