"""How long a compiled program would take at least on a chip, and what holds it back.

    kernel     max(FLOPs / attained peak, bytes / attained bandwidth, launch)
    step       sum over kernels + exchanges, less what kernels hide of them

A kernel is held back by the largest of its three terms. An exchange that is started before kernels and awaited after
them is hidden behind these; the rest of its seconds count as network. What is attained of the peaks:

    products    0.75 of the chip's FLOP/s: 769-798 of 989 TF/s measured on an H200 for 8192 x 8192 in bfloat16, and
                some less for the shapes of a network
    attention   forward 0.70 l / (l + 160), backward 0.53 l / (l + 360), l keys: through the readings of tokamax on an
                H100 with heads of 128, cuDNN forward 528, 679, 697 TF/s at 512, 4096, 16384, backward 305-518
    memory      0.85 of the bandwidth: 4.3 of 4.8 TB/s measured on an H200 for a copy, and some less for other kernels
    launch      1 microsecond on a GPU, as XLA's own model of performance has it (gpu_performance_model_base.h)

It knows nothing of stragglers, of input, or of kernels that are slower than these: a reading below 70 % of the
prediction is worth a profile, and the prediction is for ranking.
"""

import collections as containers
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from nova_jax.parallel import collectives, hlo
from nova_jax.planning.hardware import Chip
from nova_jax.planning.program import FOLLOWED, Kernel

PRODUCT, MEMORY = 0.75, 0.85
ATTENTION = {"forward": (0.70, 160), "backward": (0.53, 360)}


class Roofline(NamedTuple):
    """Seconds of a program by what holds its kernels back."""

    compute: float
    memory: float
    launch: float
    network: float

    @property
    def seconds(self) -> float:
        """All together."""
        return sum(self)

    @property
    def limit(self) -> str:
        """What most seconds go to: the name of a field."""
        return max(self._asdict().items(), key=lambda pair: pair[1])[0]

    def mfu(self, model_flops: float, chip: Chip) -> float:
        """Share of the chip's peak that FLOPs of the model, of one device, come to."""
        return model_flops / self.seconds / chip.flops


def of_program(text: str, kernels: Sequence[Kernel], sizes: Mapping[str, int], chip: Chip) -> Roofline:
    """The roofline of a program on a mesh; see `exposed_seconds`."""
    return of_kernels(kernels, chip, exposed_seconds(text, kernels, sizes, chip))


def of_kernels(kernels: Iterable[Kernel], chip: Chip, network: float = 0.0) -> Roofline:
    """The roofline of a program.

    Args:
        kernels: see `program.read`.
        chip: that it was compiled for.
        network: seconds of exchanges that nothing hides.
    """
    seconds = Roofline(0.0, 0.0, 0.0, network)._asdict()
    for kernel in kernels:
        if kernel.kind != "exchange":
            terms = kernel_seconds(kernel, chip)
            limit = max(terms, key=lambda name: terms[name])
            seconds[limit] += terms[limit] * kernel.times
    return Roofline(**seconds)


def kernel_seconds(kernel: Kernel, chip: Chip) -> dict[str, float]:
    """What each limit alone would let a kernel take, each time it runs."""
    attained = PRODUCT
    if kernel.kind == "attention":
        share, half = ATTENTION["backward" if kernel.is_backward else "forward"]
        attained = share * kernel.keys / (kernel.keys + half) if kernel.keys else share
    return {
        "compute": kernel.flops / (attained * chip.flops),
        "memory": (kernel.read + kernel.written) / (MEMORY * chip.bandwidth),
        "launch": chip.launch,
    }


def exposed_seconds(text: str, kernels: Sequence[Kernel], sizes: Mapping[str, int], chip: Chip) -> float:
    """Seconds of a program's exchanges that no kernel hides.

    Args:
        text: of the program.
        kernels: of the same.
        sizes: of the mesh axes, in their order.
        chip: that it was compiled for.
    """
    takes = {kernel.name: max(kernel_seconds(kernel, chip).values()) for kernel in kernels if kernel.kind != "exchange"}
    parts = {(found.name, found.kind): found for found in collectives.read(text, sizes)}
    exchanges: dict[str, float] = containers.defaultdict(float)
    for (name, _), found in parts.items():
        exchanges[name] += found.sent / found.times / speed(found.axes, sizes, chip)
    elapsed, exposed = 0.0, 0.0
    started: dict[str, tuple[float, float]] = {}  # name of the start -> seconds of the exchange, elapsed before it
    for run in hlo.walk(hlo.parse(text), FOLLOWED):
        instruction, times = run.instruction, run.times or 0
        elapsed += takes.get(instruction.name, 0.0) * times
        if instruction.op.endswith("-start") and instruction.name in exchanges:
            started[instruction.name] = exchanges[instruction.name], elapsed
        elif instruction.op.endswith("-done") and instruction.operands[0] in started:
            seconds, before = started.pop(instruction.operands[0])
            exposed += max(seconds * times - (elapsed - before), 0.0)
        elif instruction.name in exchanges:
            exposed += exchanges[instruction.name] * times
    return exposed


def speed(axes: Sequence[str], sizes: Mapping[str, int], chip: Chip) -> float:
    """Bytes/s that a device sends to others along these axes of a mesh, of which the last are neighbours."""
    span, reach = 1, 1  # devices from the first to the last of a group
    for axis, size in reversed(list(sizes.items())):
        reach += span * (size - 1) if axis in axes else 0
        span *= size
    return chip.network if chip.machine and reach > chip.machine else chip.link
