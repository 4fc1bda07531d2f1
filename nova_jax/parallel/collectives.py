"""What a compiled program sends between devices, and what it has to send.

`read` lists the collectives of a program from the text of its HLO; what stands in a loop counts once for every turn.
The formulas say what each axis of the mesh costs, so that a test or a plan can hold one against the other.

Bytes are those that one device sends by the usual ring algorithms (Thakur, Rabenseifner and Gropp 2005, "Optimization
of collective communication operations in MPICH"). With s bytes of result on each of n devices that take part:

    all-gather, all-to-all    s (n - 1) / n
    reduce-scatter            s (n - 1)
    all-reduce                2 s (n - 1) / n
    collective-permute        s
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec

from nova_jax.parallel import hlo, rules

KINDS: tuple[str, ...] = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

Bytes = int | float


class Collective(NamedTuple):
    """One exchange of a program."""

    kind: str  # one of KINDS
    axes: tuple[str, ...]  # of the mesh, along which the devices of a group lie
    ways: int  # devices of a group
    size: int  # bytes of its result on a device
    times: int  # how often it runs
    source: str  # what it was compiled from, as JAX names it
    name: str = ""  # of the instruction

    @property
    def sent(self) -> float:
        """Bytes that a device sends, all turns together."""
        share = {"reduce-scatter": self.ways - 1, "collective-permute": 1}
        factor = share.get(self.kind, (self.ways - 1) / self.ways) * (2 if self.kind == "all-reduce" else 1)
        return float(self.size * factor * self.times)


def read(text: str, sizes: Mapping[str, int]) -> list[Collective]:
    """The collectives of a program, the largest first.

    An all-reduce of which every user keeps a part is a reduce-scatter: compilers for accelerators make it one, that for
    the CPU does not. Both branches of a conditional count.

    Args:
        text: `jax.jit(f).lower(..).compile().as_text()`.
        sizes: of the mesh axes, in the order of the mesh: `mesh.shape`.

    Raises:
        ValueError: a loop that exchanges something turns an unknown number of times.
    """
    program, found = hlo.parse(text), []
    for inside, instruction, times in hlo.walk(program):
        if instruction.op.removesuffix("-start") in KINDS:
            if times is None:
                raise ValueError(f"{instruction.name} runs in a loop whose number of turns the compiler does not know")
            found += _collectives(program, program[inside], instruction, times, sizes)
    found = [collective for collective in found if collective.ways > 1]
    return sorted(found, key=lambda c: -c.sent)


def sent(collectives: Iterable[Collective], kind: str | None = None, axis: str | None = None) -> Bytes:
    """Bytes that a device sends in all of them, or in those of one kind, or along one axis of the mesh."""
    return sum(c.sent for c in collectives if kind in (None, c.kind) and (axis is None or axis in c.axes))


def gather(size: Bytes, ways: int) -> float:
    """An all-gather, or reduce-scatter, of `size` bytes over `ways` devices; or an all-to-all of `size` on each."""
    return size * (ways - 1) / ways


def reduce(size: Bytes, ways: int) -> float:
    """An all-reduce of `size` bytes."""
    return 2 * gather(size, ways)


def data_parallel(gradients: Bytes, ways: int) -> float:
    """A training step: gradients, of this many bytes on a device, are summed."""
    return reduce(gradients, ways)


def fsdp(weights: Bytes, gradients: Bytes, ways: int) -> float:
    """A training step: weights are gathered forwards and again backwards, gradients come back in parts.

    Rajbhandari et al. 2019, "ZeRO", 1910.02054, section 7; sizes are those of all parts together.
    """
    return 2 * gather(weights, ways) + gather(gradients, ways)


def tensor_parallel(tokens: Bytes, ways: int, layers: int, branches: int = 3) -> float:
    """A training step: every branch of a layer is summed forwards, and its input's gradient backwards.

    Shoeybi et al. 2019, "Megatron-LM", 1909.08053, section 3.

    Args:
        tokens: bytes of the tokens (b, n, d) on a device.
        ways: devices on the axis.
        layers: of the network.
        branches: of a layer: self-attention, cross-attention, MLP.
    """
    return layers * branches * 2 * reduce(tokens, ways)


def ulysses(tokens: Bytes, ways: int, layers: int) -> float:
    """A training step: queries, keys, values and output change from tokens to heads or back, each way once.

    Jacobs et al. 2023, 2309.14509, section 3.2. `tokens` are bytes of (b, n, d) on all devices of the axis together;
    where rings of r lie around it, an r-th of them.
    """
    return layers * 2 * 4 * gather(tokens / ways, ways)


def ring(tokens: Bytes, ways: int, layers: int) -> float:
    """A training step: keys and values go round, and backwards once more with their gradients.

    Liu et al. 2023, 2310.01889, section 3. `tokens` as in `ulysses`; where heads are cut u ways inside, a u-th of them.
    """
    return layers * (2 + 4) * (ways - 1) * tokens / ways


def guidance_parallel(latents: Bytes, ways: int = 2) -> float:
    """An evaluation whose rows, two for each sample, lie on this many devices: each gets what the others predicted.

    Args:
        latents: bytes of the samples (b, f, h, w, c), whole on every device.
        ways: devices that share the rows; with one sample two of them work.
    """
    return gather(2 * latents, ways)


def muon(matrices: Bytes, cuts: Sequence[int], copies: int = 1) -> float:
    """A step of Muon, beside gradients: see `training.muon`.

    Args:
        matrices: bytes of all its matrices.
        cuts: sizes of the axes that cut them.
        copies: devices that hold the same part.
    """
    part = matrices / math.prod(cuts)
    return 2 * sum(gather(part / copies, ways) for ways in cuts) + gather(part, copies)


def training_step(params: Any, sizes: Mapping[str, int], tokens: Bytes, text: Bytes = 0) -> dict[str, float]:
    """By kind, what a step of AdamW on a scanned transformer has to send over data, fsdp and tensor.

    Weights that fsdp cuts are gathered, those of blocks once more for the backward pass, and their gradients come back
    in parts; other gradients are summed whole. On tensor, tokens are summed six times a layer, and the gradient of the
    text that every layer reads once.

    Args:
        params: arrays, or their shapes; those of blocks are stacked below a `blocks`.
        sizes: of the mesh axes.
        tokens: bytes of the tokens (b, n, d) on a device.
        text: bytes of the text (b, l, d) on a device; 0: no cross-attention.
    """
    sent: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    layers, replicas = 0, math.prod(size for axis, size in sizes.items() if axis != "tensor")
    specs = jax.tree.leaves(rules.specs(params, sizes))
    for (path, leaf), spec in zip(jax.tree_util.tree_leaves_with_path(params), specs, strict=True):
        name, axes = rules.name_of(path), rules.axes_of(spec)
        ways = math.prod(sizes[axis] for axis in axes if axis != "tensor")
        size = math.prod(leaf.shape) * leaf.dtype.itemsize / (sizes["tensor"] if "tensor" in axes else 1)
        sent["all-gather"] += gather(size, ways) * (2 if "blocks/" in name else 1)
        sent["reduce-scatter"] += gather(size, ways)
        sent["all-reduce"] += reduce(size / ways, replicas // ways)
        layers = leaf.shape[0] if name.endswith("blocks/mlp/up/kernel") else layers
    sent["all-reduce"] += tensor_parallel(tokens, sizes["tensor"], layers, branches=3 if text else 2)
    sent["all-reduce"] += layers * reduce(text, sizes["tensor"])
    return sent


class Call(NamedTuple):
    """Sizes of one call of a sampling program: guided, with keys and values of the text made before."""

    samples: int  # fewer than, or a multiple of, the devices over data and fsdp
    tokens: int  # of a sample
    text: int  # states of a sample
    latents: int  # bytes of a sample
    evaluations: int  # of the network, each on two rows for a sample


def sampling(params: Any, sizes: Mapping[str, int], call: Call) -> dict[str, float]:
    """By kind, what a call of a sampling program has to send, in float32, with Ulysses alone on the context axis.

    Every evaluation gathers the weights that fsdp and context cut. Where the devices have the same few rows, as of the
    text, or along context of the times, they sum what each makes of its part of a weight instead. Tensor sums tokens
    three times a layer, context trades them for heads, and the two answers to a sample come together.
    """
    sent: dict[str, float] = dict.fromkeys(KINDS, 0.0)
    parts, width = sizes["data"] * sizes["fsdp"], params["patch_embed"]["kernel"].shape[-1]
    rows, layers = 2 * call.samples / parts, params["blocks"]["mlp"]["up"]["kernel"].shape[0]
    specs = jax.tree.leaves(rules.specs(params, sizes))
    for (path, leaf), spec in zip(jax.tree_util.tree_leaves_with_path(params), specs, strict=True):
        name, axes = rules.name_of(path), rules.axes_of(spec)
        ways = math.prod(sizes[axis] for axis in axes if axis != "tensor")
        is_text, is_time = re.search(r"text_embed|cross_attention/(key|value)/", name), re.match("time_", name)
        times = 1 if is_text else call.evaluations
        if (sizes["fsdp"] == 1 and (is_text or is_time)) or (is_text and call.samples % parts):
            made = 4 * ((call.samples + 1) * call.text if is_text else rows) * leaf.shape[-1]
            made *= layers if name.startswith("blocks/") else 1
            last = rules.axes_of(PartitionSpec(*tuple(spec)[leaf.ndim - 1 :]))
            is_whole = set(last) <= {"tensor"}  # every device makes a part of each sum, not some of the sums
            sent["all-reduce" if is_whole else "all-gather"] += times * (reduce if is_whole else gather)(made, ways)
        else:
            size = math.prod(leaf.shape) * leaf.dtype.itemsize / (sizes["tensor"] if "tensor" in axes else 1)
            sent["all-gather"] += times * gather(size, ways)
    token = 4 * rows * call.tokens * width
    sent["all-gather"] += call.evaluations * guidance_parallel(call.samples * call.latents, parts) * (rows < 2)
    sent["all-reduce"] += call.evaluations * tensor_parallel(token, sizes["tensor"], layers) / 2  # forwards alone
    sent["all-to-all"] += call.evaluations * ulysses(token, sizes["context"], layers) / 2
    return sent


def _collectives(
    program: hlo.Program, inside: hlo.Computation, found: hlo.Instruction, times: int, sizes: Mapping[str, int]
) -> Iterator[Collective]:
    """One instruction: two collectives where it sums several arrays, and a device keeps a part of some of them."""
    kind = found.op.removesuffix("-start")
    group = _first_group(found.attributes, math.prod(sizes.values()))
    places = np.unravel_index(group, tuple(sizes.values()))
    axes = tuple(axis for axis, along in zip(sizes, places, strict=True) if len(set(along)) > 1)
    results = result_sizes(found, kind)
    is_part = [
        kind == "all-reduce" and _keeps_parts(program, inside, found.name, size // len(group), i)
        for i, size in enumerate(results)
    ]
    whole = sum(size for size, part in zip(results, is_part, strict=True) if not part)
    parts = sum(size for size, part in zip(results, is_part, strict=True) if part)
    for name, size in ((kind, whole), ("reduce-scatter", parts // len(group))):
        if size:
            yield Collective(name, axes, len(group), size, times, found.source, found.name)


def _first_group(rest: str, devices: int) -> list[int]:
    """The devices that the first one exchanges with, by their places in the mesh."""
    iota = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"
    if found := re.search(rf"replica_groups=\[([\d,]+)\]<={iota}", rest):
        shape, *source = found.groups()
        return _iota(devices, *source).reshape(hlo.dims(shape))[0].tolist()
    if found := re.search(rf"replica_groups=mesh\[(.*?)\](?:, device_ids=\({iota}\))? \{{(.*?)\}}", rest):
        axes, *source, named = found.groups()
        return _first_along(_iota(devices, *source), axes, named)
    if found := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{.*?\})\}", rest):
        groups = [hlo.dims(group) for group in re.findall(r"\{([\d,]+)\}", found[1])]
        return next((group for group in groups if len(set(group)) > 1), groups[0])
    if "replica_groups={}" in rest:
        return list(range(devices))
    raise ValueError(f"cannot read which devices exchange: {rest[:500]}")


def _first_along(places: np.ndarray, axes: str, named: str) -> list[int]:
    """Along named axes of the compiler's own mesh; `'a':(k)n` are n parts of axis a, after it is cut into k."""
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", axes)}
    along = {axis: [0] for axis in sizes}
    for axis, before, parts in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named):
        stride = sizes[axis] // (int(before) * int(parts)) if parts else 1
        along[axis] = [stride * i for i in range(int(parts or sizes[axis]))]
    return places.reshape(tuple(sizes.values()))[np.ix_(*along.values())].ravel().tolist()


def _iota(devices: int, shape: str | None, order: str | None) -> np.ndarray:
    """All devices: counted in one shape, in another order of its dimensions."""
    return np.arange(devices).reshape(hlo.dims(shape or "") or -1).transpose(hlo.dims(order or "") or None).ravel()


def result_sizes(found: hlo.Instruction, kind: str) -> list[int]:
    """Bytes of each result; an exchange that has only started also carries operands, a permutation its contexts."""
    sizes = hlo.sizes(found.shape)
    if found.op.endswith("-start") and kind != "all-reduce":
        return sizes[1:2] if kind == "collective-permute" else sizes[len(sizes) // 2 :]
    return sizes


def _keeps_parts(program: hlo.Program, inside: hlo.Computation, name: str, size: int, index: int | None = None) -> bool:
    """Whether every user of a value, or of one element of a tuple, takes a slice of this size, each device its own."""
    users = inside.users(name)
    if index is not None and any(user.op == "get-tuple-element" for user in users):
        users = [user for user in users if re.search(rf"index={index}\b", user.attributes)]
    return bool(users) and all(_is_slice(program, inside, user, name, size) for user in users)


def _is_slice(program: hlo.Program, inside: hlo.Computation, user: hlo.Instruction, name: str, size: int) -> bool:
    if user.op == "dynamic-slice":
        return user.operands[0] == name and result_sizes(user, user.op) == [size]
    if user.op in ("get-tuple-element", "bitcast", "copy", "transpose", "reshape", "all-reduce-done"):
        return _keeps_parts(program, inside, user.name, size)
    if user.op != "fusion":
        return False
    fused = program[re.findall(r"calls=%([\w.\-]+)", user.attributes)[0]]
    parameters = {int(p.attributes.partition(")")[0]): p.name for p in fused.instructions if p.op == "parameter"}
    places = [i for i, operand in enumerate(user.operands) if operand == name]
    return all(_keeps_parts(program, fused, parameters[i], size) for i in places)
