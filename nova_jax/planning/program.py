"""Kernels of a compiled program, the bytes that each moves and the products that it computes, read from its HLO.

An instruction outside fusions is a kernel; one in a loop runs once for every turn. A kernel reads every operand and
writes every result once, so that caches are ignored, and of an operand that it only slices, or of a result that it
updates in place, no more than the slice: a loop over depth reads one layer of the stacked parameters in a turn, not
all. Arrays that a TPU keeps in its vector memory move no bytes.

    product     matrix products, convolutions, and fusions that hold one
    attention   flash kernels
    exchange    collectives between devices
    other       everything else: elementwise work, sums, copies
"""

import collections as containers
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from nova_jax.parallel import collectives, hlo

Kind = Literal["product", "attention", "exchange", "other"]
KINDS: tuple[Kind, ...] = ("attention", "product", "exchange", "other")  # a fusion is of the first that it holds

FOLLOWED = frozenset({"while", "call", "conditional", "async-start"})
NO_KERNEL = FOLLOWED | {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"),
    *("opt-barrier", "optimization-barrier", "add-dependency", "domain", "async-update", "async-done", "copy-done"),
    *(f"{kind}-done" for kind in collectives.KINDS),
}
NO_KERNEL_TARGETS = frozenset({"AllocateBuffer", "Sharding", "AssumeGatherIndicesInBound"})
PRODUCT_TARGETS = ("__cublas", "__cudnn$conv", "__onednn$matmul", "__onednn$convolution")
PALLAS = "tpu_custom_call"
# Flash attention, by the target of cuDNN or the name of JAX's splash kernel -> its products with the scores (b, k, n,
# l). Backwards it has four of its own and repeats one, or two where it is split.
ATTENTION = {
    r"__cudnn\$fmha.*Backward": 5,
    r"__cudnn\$fmha": 2,
    rf"{PALLAS}:splash_\w*_dkv": 4,
    rf"{PALLAS}:splash_\w*_dq": 3,
    rf"{PALLAS}:splash_\w*_fwd": 2,
}
VIEWS = frozenset({"bitcast", "reshape"})  # inside a fusion
SLICES = frozenset({"dynamic-slice", "slice", "gather"})


class Kernel(NamedTuple):
    """One kernel of a program."""

    name: str
    op: str  # of HLO, with the target of a call or the kind of a fusion
    kind: Kind
    read: int  # bytes, each time it runs
    written: int
    flops: int  # of its products, each time it runs; a multiply-add is two
    times: int
    source: str  # what it was compiled from, as JAX names it
    keys: int = 0  # of attention

    @property
    def is_backward(self) -> bool:
        """Whether it is attention's way back."""
        return self.kind == "attention" and ATTENTION.get(_attention(self.op) or "", 0) > 2

    @property
    def traffic(self) -> int:
        """Bytes read and written, all its runs together."""
        return (self.read + self.written) * self.times


class Memory(NamedTuple):
    """Bytes of a program on one device."""

    arguments: int
    temporaries: int
    results: int  # beside those that lie in donated arguments

    @property
    def peak(self) -> int:
        """All of them together."""
        return sum(self)


def read(text: str) -> list[Kernel]:
    """The kernels of a program, in its order.

    Args:
        text: `jax.jit(f).lower(..).compile().as_text()`.

    Raises:
        ValueError: a kernel runs in a loop whose number of turns the compiler does not know.
    """
    program = hlo.parse(text)
    loops = [i for computation in program.values() for i in computation.instructions if i.op == "while"]
    conditions = {name for loop in loops for name in re.findall(r"condition=%([\w.\-]+)", loop.attributes)}
    reader = _Reader(program)
    kernels = []
    for inside, instruction, times in hlo.walk(program, FOLLOWED):
        if inside in conditions or instruction.op in NO_KERNEL or _target(instruction) in NO_KERNEL_TARGETS:
            continue
        if times is None:
            raise ValueError(f"{instruction.name} runs in a loop whose number of turns the compiler does not know")
        kernels.append(reader.kernel(inside, instruction)._replace(times=times))
    return kernels


def memory(compiled: Any) -> Memory:
    """Bytes on one device, of what `jax.jit(f).lower(..).compile()` returns."""
    found = compiled.memory_analysis()
    results = found.output_size_in_bytes - found.alias_size_in_bytes
    return Memory(found.argument_size_in_bytes, found.temp_size_in_bytes, max(results, 0))


def count(kernels: Iterable[Kernel], kind: Kind | None = None) -> int:
    """Kernels that a program runs, or those of one kind."""
    return sum(kernel.times for kernel in kernels if kind in (None, kernel.kind))


def traffic(kernels: Iterable[Kernel], kind: Kind | None = None) -> int:
    """Bytes that a program reads and writes, or its kernels of one kind."""
    return sum(kernel.traffic for kernel in kernels if kind in (None, kernel.kind))


def flops(kernels: Iterable[Kernel], kind: Kind | None = None) -> int:
    """FLOPs of the products that a program computes, or of its kernels of one kind; see `Kernel.flops`."""
    return sum(kernel.flops * kernel.times for kernel in kernels if kind in (None, kernel.kind))


class Place(NamedTuple):
    """Kernels of one kind that were compiled from the same place of the source."""

    place: str  # the pass, and the modules that JAX names
    kind: Kind
    kernels: int
    traffic: int
    flops: int


def by_place(kernels: Iterable[Kernel]) -> list[Place]:
    """A table of kernels by where they come from, those that move most bytes first."""
    groups: dict[tuple[str, Kind], list[Kernel]] = containers.defaultdict(list)
    for kernel in kernels:
        groups[place(kernel.source), kernel.kind].append(kernel)
    rows = [Place(where, kind, count(group), traffic(group), flops(group)) for (where, kind), group in groups.items()]
    return sorted(rows, key=lambda row: -row.traffic)


def place(source: str) -> str:
    """Pass and modules of a source: `backward blocks/mlp/up` of `jit(step)/transpose(jvp(DiT))/blocks/while/..`.

    `recomputed` is what the backward pass repeats of the forward pass.
    """
    if not source:
        return "(of the compiler)"
    *modules, _ = [part for part in source.split("/") if re.fullmatch(r"[\w\-]+", part)] or [""]  # not DiT._forward
    kept = [part for part in modules if part not in {"while", "body", "cond", "closed_call", "checkpoint"}]
    is_repeated, is_backward = "rematted_computation" in kept, "transpose(" in source
    kept = list(dict.fromkeys(part for part in kept if part != "rematted_computation"))
    in_network = "jvp(" in source
    step = "recomputed" if is_repeated else "backward" if is_backward else "forward" if in_network else "outside"
    return " ".join([step, "/".join(kept)]).strip()


def _op(instruction: hlo.Instruction) -> str:
    """The operation, with what kind of it: the target of a call, the name of a Pallas kernel, the kind of a fusion."""
    if target := _target(instruction):
        return f"{target}:{instruction.name}" if target == PALLAS else target
    kind = re.search(r"kind=(\w+)", instruction.attributes)
    return f"{instruction.op}:{kind[1]}" if kind else instruction.op


def _target(instruction: hlo.Instruction) -> str:
    found = re.search(r'custom_call_target="([^"]*)"', instruction.attributes)
    return found[1] if found else ""


class _Reader:
    """Looks into the fusions of one program."""

    def __init__(self, program: hlo.Program) -> None:
        self._program = program
        self._made = {name: {i.name: i for i in inside.instructions} for name, inside in program.items()}

    def kernel(self, inside: str, found: hlo.Instruction) -> Kernel:
        """An instruction outside fusions, as if it ran once."""
        kind, op = self._kind(found), _op(found)
        read = sum(self._read(inside, found, operand) for operand in range(len(found.operands)))
        written = sum(self._written(inside, found, kind))
        operands = self._operands(inside, found)
        keys = _scores(found, operands)[-1] if _attention(op) else 0
        return Kernel(found.name, op, kind, read, written, self._flops(inside, found), 1, found.source, keys)

    def _fused(self, found: hlo.Instruction) -> list[hlo.Instruction]:
        """The instructions inside a fusion; of others none."""
        return self._program[found.called[0]].instructions if found.op == "fusion" else []

    def _kind(self, found: hlo.Instruction) -> Kind:
        if found.op.removesuffix("-start") in collectives.KINDS:
            return "exchange"
        if _attention(_op(found)):
            return "attention"
        if found.op in ("dot", "convolution") or _target(found).startswith(PRODUCT_TARGETS):
            return "product"
        inside = [self._kind(instruction) for instruction in self._fused(found)]
        return min([*inside, "other"], key=KINDS.index)

    def _read(self, inside: str, found: hlo.Instruction, operand: int) -> int:
        """Bytes of an operand that an instruction reads."""
        made = self._made[inside].get(found.operands[operand])
        whole = _moved(made.shape) if made else 0
        if found.op in SLICES and operand == 0:
            return min(whole, _moved(found.shape))
        if found.op == "dynamic-update-slice" and operand == 0:
            return 0
        if found.op != "fusion":
            return whole
        parameter = next(i for i in self._fused(found) if i.op == "parameter" and _number(i) == operand)
        return min(whole, self._read_by_users(found.called[0], parameter.name, whole))

    def _read_by_users(self, inside: str, name: str, whole: int) -> int:
        """Bytes of a value inside a fusion that are read: slices where nobody reads more; else all of it."""
        total = 0
        for user in self._program[inside].users(name):
            places = [i for i, operand in enumerate(user.operands) if operand == name]
            if user.op in VIEWS:
                total += self._read_by_users(inside, user.name, whole)
            elif user.op in SLICES or user.op == "fusion":
                total += sum(self._read(inside, user, i) for i in places)
            elif user.op != "dynamic-update-slice" or places != [0] or not self._is_result(inside, user):
                return whole
        return total

    def _is_result(self, inside: str, found: hlo.Instruction) -> bool:
        """Whether a computation returns a value, or a view of it, and does nothing else with it."""
        users = self._program[inside].users(found.name)
        return all(user.op in {*VIEWS, "tuple"} and self._is_result(inside, user) for user in users) and (
            found.is_root or bool(users)
        )

    def _written(self, inside: str, found: hlo.Instruction, kind: Kind) -> list[int]:
        """Bytes that an instruction writes into each of its results."""
        if kind == "exchange" and found.op != "fusion":
            return collectives.result_sizes(found, found.op.removesuffix("-start"))
        if found.op == "dynamic-update-slice":
            return [_moved(self._made[inside][found.operands[1]].shape)]
        results = hlo.arrays(found.shape)
        if found.op == "copy-start":  # (result, operand, context)
            return [_moved_of(results[0])]
        if kind in ("product", "attention"):  # the last result may be scratch memory
            results = [a for a in results if not (a.dtype in ("s8", "u8") and len(a.dims) == 1)]
        sizes = [_moved_of(array) for array in results]
        if found.op == "fusion":
            root = self._program[found.called[0]].root
            names = root.operands if root.op == "tuple" else [root.name]
            sizes = [
                min(size, self._updated(found.called[0], name, size)) for size, name in zip(sizes, names, strict=False)
            ]
        return sizes

    def _updated(self, inside: str, name: str, whole: int) -> int:
        """Bytes of a fusion's result that are written: those of the update, if it changes an operand in place."""
        made = self._made[inside][name]
        if made.op in VIEWS:
            return self._updated(inside, made.operands[0], whole)
        return _moved(self._made[inside][made.operands[1]].shape) if made.op == "dynamic-update-slice" else whole

    def _operands(self, inside: str, found: hlo.Instruction) -> list[hlo.Instruction]:
        return [self._made[inside][name] for name in found.operands if name in self._made[inside]]

    def _flops(self, inside: str, found: hlo.Instruction) -> int:
        operands = self._operands(inside, found)
        if found.op == "fusion":
            return sum(self._flops(found.called[0], instruction) for instruction in self._fused(found))
        if found.op == "dot" or _target(found).startswith("__cublas"):
            return _dot_flops(found, operands)
        if found.op == "convolution":
            return _convolution_flops(found, operands)
        flash = _attention(_op(found))
        return ATTENTION[flash] * 2 * math.prod(_scores(found, operands)) * _heads(operands)[0][-1] if flash else 0


def _dot_flops(found: hlo.Instruction, operands: Sequence[hlo.Instruction]) -> int:
    contracted = re.search(r'lhs_contracting_dim(?:s=\{|ensions": ?\[)([\d," ]*)', found.attributes)
    left = hlo.arrays(operands[0].shape)[0].dims
    inner = math.prod(left[i] for i in hlo.dims(contracted[1].replace('"', ""))) if contracted else 1
    return 2 * math.prod(hlo.arrays(found.shape)[0].dims) * inner


def _convolution_flops(found: hlo.Instruction, operands: Sequence[hlo.Instruction]) -> int:
    """Those of numbers that meet numbers: padding, and holes of a dilated input, cost nothing.

    Compilers for TPUs write batched products as such convolutions.
    """
    left, right = (hlo.arrays(operand.shape)[0].dims for operand in operands[:2])
    out = hlo.arrays(found.shape)[0].dims
    named = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", found.attributes)
    assert named, found
    named_in, named_kernel, named_out = named.groups()
    total = 2 * math.prod(out[named_out.index(c)] for c in "bf") * right[named_kernel.index("i")]
    for axis in range(len(out) - 2):
        window = {"size": 1, "stride": 1, "lhs_dilate": 1, "rhs_dilate": 1, "pad": 0} | {
            key: int(sizes.split("x")[axis].split("_")[0])
            for key, sizes in re.findall(
                r"(\w+)=([\dx_\-]+)", found.attributes.partition("window={")[2].partition("}")[0]
            )
        }
        starts = np.arange(out[named_out.index(str(axis))]) * window["stride"] - window["pad"]
        met = starts[:, None] + np.arange(window["size"]) * window["rhs_dilate"]
        last = (left[named_in.index(str(axis))] - 1) * window["lhs_dilate"]
        total *= int(((met >= 0) & (met <= last) & (met % window["lhs_dilate"] == 0)).sum())
    return total


def _attention(op: str) -> str | None:
    """The entry of `ATTENTION` that a kernel is; None: another kind."""
    return next((pattern for pattern in ATTENTION if re.match(pattern, op)), None)


def _heads(operands: Sequence[hlo.Instruction]) -> list[tuple[int, ...]]:
    """Shapes of queries, keys and values: of operands of flash attention the first floats of over two dimensions."""
    found = [hlo.arrays(operand.shape)[0] for operand in operands]
    return [array.dims for array in found if len(array.dims) > 2 and "f" in array.dtype]


def _scores(found: hlo.Instruction, operands: Sequence[hlo.Instruction]) -> list[int]:
    """Sizes (b, k, n, l) of the scores of flash attention."""
    if said := re.search(r'"intermediate_tensor_shape": ?\{[^}]*?"dimensions": ?\[([\d," ]*)', found.attributes):
        return hlo.dims(said[1].replace('"', ""))
    queries, keys = _heads(operands)[:2]  # (.., k, n, q) and (.., k, l, q)
    return [*queries[:-1], keys[-2]]


def _number(parameter: hlo.Instruction) -> int:
    return int(parameter.attributes.partition(")")[0])


def _moved(shape: str) -> int:
    return sum(_moved_of(array) for array in hlo.arrays(shape))


def _moved_of(array: hlo.Array) -> int:
    """Bytes of an array; none where it lies in the vector memory of a TPU (a tiled layout in memory space 1)."""
    return 0 if "T(" in array.layout and "S(1)" in array.layout else array.size
