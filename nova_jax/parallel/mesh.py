"""The device mesh: four axes that every sharding in the library is written in.

    data     replicas: each holds all parameters and sees its own samples
    fsdp     samples as well, but parameters and optimizer state are cut into this many parts and gathered layer by
             layer (Rajbhandari et al. 2019, "ZeRO", 1910.02054)
    context  tokens of one sample
    tensor   heads and MLP features of one layer (Shoeybi et al. 2019, "Megatron-LM", 1909.08053)

Axis types are always Auto: the compiler partitions, `constrain` and `rules` steer it.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "context", "tensor")
BATCH_AXES = ("data", "fsdp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshConfig:
    """Sizes of the mesh axes; one of them may be -1: all devices that the others leave."""

    data: int = -1
    fsdp: int = 1
    context: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = [getattr(self, axis) for axis in AXES]
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise ValueError(f"{self}: sizes are positive, and at most one of them is -1 (all remaining devices)")

    def sizes(self, num_devices: int) -> tuple[int, ...]:
        """Resolves -1 for this many devices.

        Raises:
            ValueError: the mesh needs more devices than there are, or its size does not divide their number.
        """
        fixed = math.prod(size for size in dataclasses.astuple(self) if size != -1)
        if fixed > num_devices:
            raise ValueError(f"{self} needs at least {fixed} devices, but there are {num_devices}")
        if num_devices % fixed or (-1 not in dataclasses.astuple(self) and fixed != num_devices):
            raise ValueError(
                f"{self}: {fixed} does not {'divide' if num_devices % fixed else 'use all of'} {num_devices} devices; "
                f"use data=-1 and sizes whose product is one of {_divisors(num_devices)}"
            )
        return tuple(num_devices // fixed if getattr(self, axis) == -1 else getattr(self, axis) for axis in AXES)

    def make(self, devices: Sequence[Any] | None = None) -> Mesh:
        """Arranges the devices (default: all, on all hosts) so that mesh neighbours are neighbours in the network."""
        devices = jax.devices() if devices is None else devices
        sizes = self.sizes(len(devices))
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
        return Mesh(np.asarray(grid), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Samples over data and fsdp: x[B_(data,fsdp), ...]."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch_size(mesh: Mesh, batch_size: int, accumulate: int = 1) -> None:
    """Refuses a global batch that cannot be cut evenly.

    Raises:
        ValueError: with the nearest batch sizes that would do.
    """
    unit = math.prod(mesh.shape[axis] for axis in BATCH_AXES) * accumulate
    if batch_size % unit or batch_size < 1:
        below = batch_size - batch_size % unit
        allowed = " or ".join(str(size) for size in (below, below + unit) if size > 0)
        raise ValueError(
            f"batch_size {batch_size} does not divide over data x fsdp = {mesh.shape['data']} x {mesh.shape['fsdp']}"
            f"{f' with {accumulate} accumulated parts' if accumulate > 1 else ''}: use {allowed} (a multiple of {unit})"
        )


def current_axes() -> dict[str, int]:
    """The axes of `jax.set_mesh` that the compiler partitions (Auto), with their sizes; empty without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {name: mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto}


def current_device() -> Any:
    """What a program traced now is compiled for, with its `platform` and `device_kind`.

    A device of the mesh of `jax.set_mesh`, which may belong to hardware that is not here, or the default one.
    """
    if device := jax.sharding.get_abstract_mesh().abstract_device:
        return device
    config: Any = jax.config
    default = config.jax_default_device  # a device, the name of a platform, or None
    return jax.devices(default)[0] if default is None or isinstance(default, str) else default


def fitting_axes(size: int, axes: Sequence[str], sizes: Mapping[str, int]) -> tuple[str, ...] | None:
    """The longest prefix of mesh axes whose product divides `size`; None when nothing is left to shard over.

    Axes of one device, or absent from the mesh, are dropped: they would not cut anything.
    """
    kept: list[str] = []
    ways = 1
    for axis in axes:
        ways *= sizes.get(axis, 1)
        if size % ways:
            break
        if sizes.get(axis, 1) > 1:
            kept.append(axis)
    return tuple(kept) or None


def misfit(what: str, size: int, axes: Sequence[str], sizes: Mapping[str, int]) -> str:
    """A sentence on a dimension that mesh axes do not divide: what is left whole, and the numbers that would fit."""
    ways = math.prod(sizes.get(axis, 1) for axis in axes)
    kept = fitting_axes(size, axes, sizes)
    names = " x ".join(f"{axis}={sizes[axis]}" for axis in axes if sizes.get(axis, 1) > 1)
    left = f"only {' x '.join(kept)} cuts it" if kept else "it is whole on every device"
    fits = [f"a size of {n}" for n in (size - size % ways, size - size % ways + ways) if n]
    fits += [f"{math.gcd(size, ways)} devices"] if math.gcd(size, ways) > 1 else []
    return f"{what} does not divide over {names}, so {left}: {' or '.join(fits)} would fit"


def _divisors(n: int) -> list[int]:
    return [k for k in range(1, n + 1) if n % k == 0]
