"""The text of a compiled program, as `jax.jit(f).lower(..).compile().as_text()` prints it: HLO.

A program is a set of computations: the whole (`ENTRY`), bodies of loops, insides of fusions. `parse` reads them,
`walk` follows the calls and says how often every instruction runs.
"""

import math
import re
from collections.abc import Container, Iterator
from typing import NamedTuple

INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z\-]*)\((.*)")
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
ARRAY = re.compile(r"\b(pred|token|[a-z]+(?:\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")  # bf16[8,128]{1,0:T(8,128)}


class Array(NamedTuple):
    """What HLO says of an array."""

    dtype: str
    dims: tuple[int, ...]
    layout: str

    @property
    def size(self) -> int:
        """Bytes; a number smaller than a byte takes one."""
        if self.dtype in ("pred", "token"):
            return math.prod(self.dims) if self.dtype == "pred" else 0
        bits = re.findall(r"\d+", self.dtype)[0]
        return math.prod(self.dims) * max(int(bits) // 8, 1)


class Instruction(NamedTuple):
    """One line of HLO."""

    name: str
    shape: str
    op: str
    operands: list[str]
    attributes: str  # all that follows the name of the operation
    is_root: bool  # whether the computation returns it

    @property
    def source(self) -> str:
        """What it was compiled from, as JAX names it; empty if the compiler made it up."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""

    @property
    def called(self) -> list[str]:
        """The computations that it names."""
        return re.findall(r"%([\w.\-]+)", self.attributes.partition("), ")[2])


class Computation(NamedTuple):
    """A function of HLO: the body of a loop, of a fusion, or the whole."""

    is_entry: bool
    instructions: list[Instruction]

    @property
    def root(self) -> Instruction:
        """What it returns."""
        return next(instruction for instruction in self.instructions if instruction.is_root)

    def find(self, name: str) -> Instruction:
        """The instruction that makes a value."""
        return next(instruction for instruction in self.instructions if instruction.name == name)

    def users(self, name: str) -> list[Instruction]:
        """The instructions that read a value."""
        return [instruction for instruction in self.instructions if name in instruction.operands]


Program = dict[str, Computation]


class Run(NamedTuple):
    """An instruction, and how often a program runs it."""

    inside: str  # name of the computation
    instruction: Instruction
    times: int | None  # None: in a loop whose number of turns the compiler does not know


def parse(text: str) -> Program:
    """The computations of a program by name."""
    program: Program = {}
    current: list[Instruction] = []
    for line in text.splitlines():
        if start := COMPUTATION.match(line):
            current = []
            program[start[2]] = Computation(bool(start[1]), current)
        elif found := INSTRUCTION.match(line):
            root, name, shape, op, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
            current.append(Instruction(name, shape, op, operands, rest, bool(root)))
    return program


def walk(program: Program, into: Container[str] | None = None) -> Iterator[Run]:
    """Every instruction of a program, in order, once for every place that it is called from.

    Args:
        program: see `parse`.
        into: operations whose computations are followed; None: all. Both branches of a conditional are.
    """
    entry = next(name for name, computation in program.items() if computation.is_entry)
    yield from _walk(program, entry, 1, into)


def _walk(program: Program, name: str, times: int | None, into: Container[str] | None) -> Iterator[Run]:
    for found in program[name].instructions:
        yield Run(name, found, times)
        if into is not None and found.op not in into:
            continue
        turns = times
        if found.op == "while":
            trips = _trips(program, program[name], found)
            turns = None if times is None or trips is None else trips * times
        for called in found.called:
            if called in program:
                yield from _walk(program, called, turns, into)


def _trips(program: Program, inside: Computation, loop: Instruction) -> int | None:
    """Turns of a loop: where the compiler does not say, those of a counter that is compared with a constant."""
    if said := re.search(r"known_trip_count\D*(\d+)", loop.attributes):
        return int(said[1])
    condition, body = (
        program[re.findall(rf"{part}=%([\w.\-]+)", loop.attributes)[0]] for part in ("condition", "body")
    )
    test = condition.root
    if test.op != "compare" or "direction=LT" not in test.attributes:
        return None
    place = re.search(r"index=(\d+)", condition.find(test.operands[0]).attributes)
    made, given = body.root, inside.find(loop.operands[0])
    if place is None or made.op != "tuple" or given.op != "tuple":
        return None
    add = body.find(made.operands[int(place[1])])
    numbers = (
        _constant(inside, given.operands[int(place[1])]),
        _constant(condition, test.operands[1]),
        _constant(body, add.operands[-1]) if add.op == "add" else None,
    )
    return None if None in numbers else len(range(*numbers))  # pyright: ignore[reportArgumentType]


def _constant(inside: Computation, name: str) -> int | None:
    """A whole number that stands in a program, if this is one."""
    found = inside.find(name)
    if found.op == "copy":
        return _constant(inside, found.operands[0])
    number = re.match(r"(-?\d+)\)", found.attributes)
    return int(number[1]) if found.op == "constant" and number else None


def arrays(shape: str) -> list[Array]:
    """The array of a shape, or each array of a tuple."""
    return [Array(dtype, tuple(dims(text)), layout) for dtype, text, layout in ARRAY.findall(shape)]


def sizes(shape: str) -> list[int]:
    """Bytes of an array, or of each array of a tuple."""
    return [array.size for array in arrays(shape)]


def dims(text: str) -> list[int]:
    """Numbers between commas: of '2,3' those of a shape; of '' none."""
    return [int(n) for n in text.split(",") if n]
