"""Context parallelism: the tokens of a sample over the `context` axis of the mesh, and attention across them.

A device holds 1/c of the tokens of its samples. Only self-attention needs the others:

    Ulysses   trades tokens for heads and back by all-to-all: all tokens, 1/u of the heads, and any kernel
              (Jacobs et al. 2023, arXiv:2309.14509)
    ring      hands keys and values round, a part at a time (Liu et al. 2023, arXiv:2310.01889)
    both      c = u r: u neighbours trade, and r such groups form rings (Fang and Zhao 2024, USP, arXiv:2405.07719)

u divides the heads that the tensor axis leaves on a device; unless it is given, u = gcd(heads, c).

Tokens come in parts: those of the target, of extra frames, of the text. Each is filled up to a multiple of c, and
device i holds the i-th share of every part, one after the other: parts join and come apart without moving. `slots` says
which token lies where, for tables of positions, frames and padding. With c = 1 all of this changes nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Shaped

from nova_jax.parallel import mesh as meshes
from nova_jax.parallel.constrain import constrain

AXIS = "context"

Heads = Float[Array, "b n k q"]
Keys = Float[Array, "b l k q"]


def size() -> int:
    """Devices that share the tokens of a sample: the context axis of `jax.set_mesh`; 1 without a mesh."""
    return meshes.current_axes().get(AXIS, 1)


def fill(x: Shaped[Array, "b n *rest"]) -> Shaped[Array, "b m *rest"]:
    """A part of the tokens and zeros, so many that every device has an equal share."""
    missing = -x.shape[1] % size()
    return jnp.pad(x, ((0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2))) if missing else x


def cut(x: Float[Array, "b n *rest"]) -> Float[Array, "b m *rest"]:
    """A part of the tokens, filled up and pinned to its devices."""
    return constrain(fill(x), "batch", "tokens", *[None] * (x.ndim - 2))


def join(*parts: Array, axis: int = 1) -> Array:
    """Parts that are cut, as one array in the order of `slots`."""
    shared = [x.reshape(*x.shape[:axis], size(), -1, *x.shape[axis + 1 :]) for x in parts]
    joined = jnp.concatenate(shared, axis=axis + 1)
    return joined.reshape(*joined.shape[:axis], -1, *joined.shape[axis + 2 :])


def part(x: Float[Array, "b m *rest"], lengths: tuple[int, ...], index: int) -> Float[Array, "b n *rest"]:
    """One of the parts that were joined, in order and without what it was filled up with."""
    shares = [-(-length // size()) for length in lengths]
    start = sum(shares[:index])
    shared = x.reshape(x.shape[0], size(), -1, *x.shape[2:])[:, :, start : start + shares[index]]
    return shared.reshape(x.shape[0], -1, *x.shape[2:])[:, : lengths[index]]


def slots(*lengths: int) -> np.ndarray:
    """Which token, counted over all parts, lies at each place of the joined array; -1: none."""
    starts = np.cumsum((0, *lengths))
    padded = [
        np.pad(start + np.arange(n), (0, -n % size()), constant_values=-1)
        for start, n in zip(starts, lengths, strict=False)
    ]
    return np.concatenate([p.reshape(size(), -1) for p in padded], axis=1).reshape(-1)


@dataclasses.dataclass(frozen=True)
class Ring:
    """The devices that hand keys round: `length` groups of `width` neighbours on the context axis."""

    width: int
    length: int

    def shift(self, tree: Any, steps: int) -> Any:
        """What the group `steps` further on holds."""
        c = self.width * self.length
        return jax.lax.ppermute(tree, AXIS, [((i + steps * self.width) % c, i) for i in range(c)])

    def turned(self, mask: Bool[Array, "b n"], steps: int) -> Bool[Array, "b t"]:
        """The part of a mask of all keys that belongs to the group `steps` further on."""
        share = mask.shape[1] // self.length
        group = (jax.lax.axis_index(AXIS) // self.width + steps) % self.length
        return jax.lax.dynamic_slice_in_dim(mask, group * share, share, axis=1)

    def gather(self, x: Keys) -> Array:
        """Keys or values of all groups."""
        across = [[w + g * self.width for g in range(self.length)] for w in range(self.width)]
        return jax.lax.all_gather(x, AXIS, axis=1, tiled=True, axis_index_groups=across)


def ways(heads: int, context: int, tensor: int = 1, width: int | None = None) -> Ring:
    """How a context axis of this size splits: `width` devices trade tokens for heads, rings have `length` groups.

    Args:
        heads: of the attention.
        context: size of the axis.
        tensor: size of the tensor axis; one that does not divide the heads leaves them whole.
        width: devices that trade; None: as many as the heads allow.

    Raises:
        ValueError: a width that does not divide the axis and the heads of a device.
    """
    local = heads if heads % tensor else heads // tensor
    most = math.gcd(local, context)
    width = most if width is None else width
    if width < 1 or most % width:
        allowed = [n for n in range(1, most + 1) if most % n == 0]
        raise ValueError(
            f"ulysses_degree={width} must divide mesh.context={context} and the {local} heads of a device: "
            f"use one of {allowed}, or None for {most}"
        )
    return Ring(width, context // width)


def notes(heads: int | None, mesh: Mesh, width: int | None = None) -> list[str]:
    """What to say of a context axis at the start of a run: that it cuts no tokens, or why there is a ring.

    Args:
        heads: of the network's attention; None: it has no tokens that could be cut.
        mesh: of the run.
        width: as in `ways`; nothing is said of a ring that was asked for.
    """
    c, tensor = mesh.shape[AXIS], mesh.shape["tensor"]
    if c == 1 or (heads is not None and width is not None):
        return []
    if heads is None:
        return [f"mesh.context={c} cuts parameters alone: this network has no tokens; use mesh.data or mesh.fsdp"]
    ring, local = ways(heads, c, tensor), heads if heads % tensor else heads // tensor
    if ring.length == 1:
        return []
    below = local - local % c
    fit = " or ".join(str(n) for n in (below, below + c) if n)
    return [
        f"mesh.context={c} does not divide the {local} heads of a device: {ring.width} devices trade tokens for heads, "
        f"and keys go round rings of {ring.length}; mesh.context={ring.width}, or {fit} heads a device, need no ring"
    ]


def attend(
    kernel: Callable[..., Array],
    q: Heads,
    k: Keys,
    v: Keys,
    mask: Shaped[Array, "b *l"] | None,
    *,
    shares_keys: bool,
    width: int | None = None,
) -> Heads:
    """Attention of tokens that are cut over the context axis, by a kernel that sees one device's arrays.

    Args:
        kernel: (q, k, v, mask, ring) -> out. With a ring, k and v are those of one group, and mask those of all.
        q: queries, cut.
        k: keys, cut as the queries are, or whole on every device (text).
        v: values, like the keys.
        mask: which keys may be attended to, for the kernel.
        shares_keys: whether keys and values are cut.
        width: see `ways`.

    Raises:
        ValueError: tokens that the axis does not divide (`cut` fills them up), or a width that does not fit.
    """
    sizes = meshes.current_axes()
    if q.shape[1] % size():
        raise ValueError(f"{q.shape[1]} tokens do not divide over mesh.context={size()}: fill them up with context.cut")
    batch = meshes.fitting_axes(q.shape[0], meshes.BATCH_AXES, sizes)
    heads = meshes.fitting_axes(q.shape[2], ("tensor",), sizes)
    ring = ways(q.shape[2], size(), sizes.get("tensor", 1), width)

    def on_device(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
        if not shares_keys:
            return kernel(q, k, v, mask, None)
        groups = [[w + g * ring.width for w in range(ring.width)] for g in range(ring.length)]
        trade = functools.partial(jax.lax.all_to_all, axis_name=AXIS, tiled=True, axis_index_groups=groups)
        if ring.width > 1:
            q, k, v = (trade(a, split_axis=2, concat_axis=1) for a in (q, k, v))
        out = kernel(q, k, v, mask, ring if ring.length > 1 else None)
        return trade(out, split_axis=1, concat_axis=2) if ring.width > 1 else out

    queries = PartitionSpec(batch, AXIS, heads)
    keys = queries if shares_keys else PartitionSpec(batch, None, heads)
    specs = (queries, keys, keys, PartitionSpec(batch))
    # Kernels in Pallas say nothing of the axes over which their results vary, so that is not checked.
    inside = jax.shard_map(on_device, in_specs=specs, out_specs=queries, axis_names=set(sizes), check_vma=False)
    return inside(q, k, v, mask)
