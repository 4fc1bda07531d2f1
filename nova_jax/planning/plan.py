"""What a training step, or an evaluation of sampling, costs on each of several meshes of absent hardware.

    state         parameters, EMA and optimizer state of a device, by the table of `parallel.rules`
    activations   what its program holds beside its arguments and results
    FLOPs         of the model: the closed form of `models.flops`, over all devices
    exchanges     bytes that a device sends, by the mesh axis
    seconds       `planning.roofline`

All but the FLOPs is read from the compiled program. A loop over depth compiles as fast for 40 layers as for 2. Where
the loop is unrolled, two shallow networks are compiled, and what each further layer adds to every number is added up:
layers are alike, so all of them are linear in depth.

What does not fit is kept in the table, with what would help and by how much, by formula:

    fsdp          state by the table of `parallel.rules`
    accumulate    activations of a part of the batch
    remat         bytes per token and layer of `layers.stack`
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nova_jax.models import flops
from nova_jax.parallel import collectives, rules
from nova_jax.parallel.mesh import AXES, MeshConfig
from nova_jax.planning import hardware, program, programs, roofline
from nova_jax.planning.hardware import Target
from nova_jax.planning.roofline import Roofline
from nova_jax.runs import build, train
from nova_jax.runs.config import TrainConfig
from nova_jax.types import Batch

What = Literal["train", "sample"]

SHALLOW = (6, 8)  # layers of two unrolled programs; XLA stacks up to four gradients in another way than more
USABLE = 0.92  # of a device's memory: what XLA_PYTHON_CLIENT_MEM_FRACTION is usually raised to
SAVED = {
    "names": 28,
    "names_light": 20,
    "attention_only": 6,
    "full": 2,
}  # `layers.stack`: times width, a token and layer


class Costs(NamedTuple):
    """Of one program on one device. All numbers are linear in depth."""

    state: float  # bytes of what it is given and gives back
    activations: float  # bytes beside these
    kernels: dict[program.Kind, float]
    traffic: dict[program.Kind, float]  # bytes that they read and write
    flops: float  # of the products that it computes, recomputation included
    sent: dict[str, float]  # bytes to other devices, by mesh axis
    seconds: Roofline

    @property
    def peak(self) -> float:
        """Bytes that a device holds at most."""
        return self.state + self.activations


class Row(NamedTuple):
    """A program on one mesh."""

    mesh: dict[str, int]
    costs: Costs | None  # None: the compiler refused
    fits: bool
    mfu: float
    notes: tuple[str, ...]  # what would help where it does not fit; what the compiler said


class Plan(NamedTuple):
    """Rows for several meshes, the best first."""

    what: What
    target: Target
    parameters: int
    model_flops: float  # of all devices
    rows: list[Row]


def read_mesh(text: str) -> MeshConfig:
    """The mesh of text such as data=2,context=4; axes that are not named have one device.

    Raises:
        ValueError: something else, or an axis that there is not.
    """
    pairs = re.findall(r"(\w+)=(-?\d+)", text)
    axes = {axis: int(size) for axis, size in pairs}
    if (
        ",".join(f"{axis}={size}" for axis, size in pairs) != text
        or not axes.keys() <= set(AXES)
        or len(axes) < len(pairs)
    ):
        raise ValueError(f"--mesh {text}: give axes of {', '.join(AXES)} with their sizes, as in data=2,context=4")
    return MeshConfig(**{"data": 1} | axes)


def default_meshes(count: int) -> list[MeshConfig]:
    """So many devices all over data, and all over fsdp."""
    meshes = [MeshConfig(data=count), MeshConfig(data=1, fsdp=count)]
    return meshes if count > 1 else meshes[:1]


def make(config: TrainConfig, target: Target, mesh_configs: Sequence[MeshConfig], what: What = "train") -> Plan:
    """Compiles a program on each mesh.

    Raises:
        ValueError: a mesh, or the batch on it, that does not fit the target's devices.
        ImportError: the compiler for the target is missing.
    """
    example = programs.make_example(config)
    meshes = [mesh_config.make(hardware.devices(target)) for mesh_config in mesh_configs]
    init = functools.partial(build.init_params, config.model, example)
    with hardware.standing_in(target):
        parameters = sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))
        rows = [_row(config, example, target, mesh, what) for mesh in meshes]
    rows.sort(key=lambda row: (not row.fits, row.costs.seconds.seconds if row.costs else math.inf))
    return Plan(what, target, parameters, model_flops(config, example, what, meshes[0]), rows)


def model_flops(config: TrainConfig, example: Batch, what: What, mesh: Mesh) -> float:
    """Model FLOPs of a training step, or of a guided evaluation of one sample for each part of data x fsdp."""
    forward = train.forward_flops(config.model, example)
    if what == "train":
        return flops.train_step_flops(forward, config.batch_size)
    return 2 * forward * _samples(mesh)


def _samples(mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


def _row(config: TrainConfig, example: Batch, target: Target, mesh: Mesh, what: What) -> Row:
    sizes = {axis: size for axis, size in mesh.shape.items() if size > 1}
    try:
        costs = measure(config, example, target, mesh, what)
    except jax.errors.JaxRuntimeError as error:  # compilers for TPUs refuse what does not fit
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        told = str(error).splitlines()[0].partition("RESOURCE_EXHAUSTED: ")[2][:200]
        return Row(sizes, None, False, 0.0, (told, *_help(config, example, mesh, what)))
    own = model_flops(config, example, what, mesh) / mesh.size
    fits = costs.peak <= USABLE * target.chip.memory
    notes = () if fits else _help(config, example, mesh, what)
    return Row(sizes, costs, fits, costs.seconds.mfu(own, target.chip), tuple(notes))


def measure(config: TrainConfig, example: Batch, target: Target, mesh: Mesh, what: What) -> Costs:
    """The costs of a program: of the whole of it where depth is a loop, else from two shallow ones."""
    denoiser = getattr(config.model, "dit", config.model)
    depth = getattr(denoiser, "depth", 0)
    if depth <= max(SHALLOW) or denoiser.scan_unroll < depth:
        return compile_costs(config, example, target, mesh, what)
    few, more = (compile_costs(with_depth(config, n), example, target, mesh, what) for n in SHALLOW)
    return extrapolate(few, more, *SHALLOW, depth)


def with_depth(config: TrainConfig, depth: int) -> TrainConfig:
    """The config with a transformer of so many layers, all unrolled."""
    fields: dict[str, Any] = {"depth": depth, "scan_unroll": depth}
    model = config.model
    if hasattr(model, "dit"):
        return dataclasses.replace(
            config, model=dataclasses.replace(model, dit=dataclasses.replace(model.dit, **fields))
        )
    return dataclasses.replace(config, model=dataclasses.replace(model, **fields))


def extrapolate(few: Any, more: Any, few_layers: int, more_layers: int, layers: int) -> Any:
    """A tree of numbers at `layers`, on the line through those at two other depths."""
    share = (layers - few_layers) / (more_layers - few_layers)
    return jax.tree.map(lambda a, b: a + share * (b - a), few, more)


def compile_costs(config: TrainConfig, example: Batch, target: Target, mesh: Mesh, what: What) -> Costs:
    """The costs of the whole program."""
    return costs_of(compile_program(config, example, target, mesh, what), mesh, target)


def compile_program(config: TrainConfig, example: Batch, target: Target, mesh: Mesh, what: What) -> Any:
    """A program of an experiment, compiled for a mesh of the target."""
    with hardware.standing_in(target):
        if what == "train":
            lowered = programs.lower_training(config, example, mesh)
        else:
            lowered = programs.lower_evaluation(config, example, mesh, _samples(mesh))
        return hardware.compile_for(target, lowered)


def costs_of(compiled: Any, mesh: Mesh, target: Target) -> Costs:
    """The costs of a compiled program."""
    text, held = compiled.as_text(), program.memory(compiled)
    kernels, sent = program.read(text), collectives.read(text, mesh.shape)
    axes = [axis for axis, size in mesh.shape.items() if size > 1]
    costs = Costs(
        state=held.arguments + held.results,
        activations=held.temporaries,
        kernels={kind: program.count(kernels, kind) for kind in program.KINDS},
        traffic={kind: program.traffic(kernels, kind) for kind in program.KINDS},
        flops=program.flops(kernels),
        sent={axis: collectives.sent(sent, axis=axis) for axis in axes},
        seconds=roofline.of_program(text, kernels, mesh.shape, target.chip),
    )
    return jax.tree.map(float, costs)


def _help(config: TrainConfig, example: Batch, mesh: Mesh, what: What) -> list[str]:
    """What would make a program smaller, and by how much; by formula."""
    found = []
    shape = dict(mesh.shape)
    if shape["data"] > 1:
        cut = MeshConfig(**shape | {"data": 1, "fsdp": shape["data"] * shape["fsdp"]}).make(list(mesh.devices.flat))
        state, _ = programs.plan_state(config, example, mesh)
        tree = state if what == "train" else state.params
        before, after = (rules.bytes_per_device(tree, m) for m in (mesh, cut))
        found.append(f"mesh.fsdp={cut.shape['fsdp']}, data=1: state {gigabytes(before)} -> {gigabytes(after)}")
    if what == "sample":
        return found
    denoiser = getattr(config.model, "dit", config.model)
    rows = config.batch_size // (_samples(mesh) * config.accumulate)
    saved = _saved_bytes(denoiser, example, rows, mesh)
    if rows > 1:
        parts = next(n for n in range(2, rows + 1) if rows % n == 0)
        less = f"{gigabytes(saved * (1 - 1 / parts))} less of" if saved else f"{rows // parts} of {rows} samples'"
        found.append(f"accumulate={config.accumulate * parts}: {less} activations")
    if saved:
        name = "model.dit.remat" if denoiser is not config.model else "model.remat"
        for policy in list(SAVED)[list(SAVED).index(denoiser.remat) + 1 :]:
            less = saved * (1 - SAVED[policy] / SAVED[denoiser.remat])
            found.append(f"{name}={policy}: {gigabytes(less)} less of activations")
    return [f"{text} (by formula)" for text in found]


def _saved_bytes(denoiser: Any, example: Batch, rows: int, mesh: Mesh) -> float:
    """Bytes of a device that a named policy keeps for the backward pass, of so many samples; 0: no named policy."""
    if getattr(denoiser, "remat", None) not in SAVED:
        return 0.0
    tokens = rows * math.prod(-(-n // p) for n, p in zip(example.x0.shape[1:4], denoiser.patch_size, strict=True))
    itemsize = jnp.dtype(denoiser.dtype).itemsize / 2  # `SAVED` is of bfloat16
    ways = mesh.shape["context"] * mesh.shape["tensor"]
    return SAVED[denoiser.remat] * denoiser.width * denoiser.depth * tokens * itemsize / ways


def gigabytes(size: float | int) -> str:
    """Bytes as text."""
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB"


HEAD = "{:28} {:>9} {:>6} {:>8} {:>10} {:>10} {:>11} {:>8} {:>10} {:>12} {:>10}  {}"
COLUMNS = (
    *("mesh", "ms", "MFU", "held by", "peak", "state", "activations", "kernels", "traffic", "but products"),
    *("network ms", "sent by axis"),
)


def table(plan: Plan) -> str:
    """A plan as lines of text: what is the same on every mesh, a line for each mesh, then what does not fit."""
    chip = plan.target.chip
    step = "training step" if plan.what == "train" else "guided evaluation, one sample for each part of data x fsdp"
    lines = [
        f"{step}: {plan.parameters / 1e6:,.1f} M parameters, {plan.model_flops / 1e12:,.4g} TFLOP on "
        f"{plan.target.count} x {plan.target.chip_name}, each of {chip.flops / 1e12:,.4g} TFLOP/s, "
        f"{gigabytes(chip.memory)}, {chip.bandwidth / 1e12:.3g} TB/s",
        HEAD.format(*COLUMNS),
    ]
    for row in plan.rows:
        if row.costs is None:
            lines.append(f"{mesh_name(row):28} does not fit")
            continue
        costs, seconds = row.costs, row.costs.seconds
        cells = (
            *(mesh_name(row), f"{1e3 * seconds.seconds:.1f}", f"{row.mfu:.1%}", seconds.limit),
            *(gigabytes(costs.peak), gigabytes(costs.state), gigabytes(costs.activations)),
            *(f"{sum(costs.kernels.values()):,.0f}", gigabytes(sum(costs.traffic.values()))),
            *(gigabytes(costs.traffic["other"]), f"{1e3 * seconds.network:.1f}"),
            ", ".join(f"{axis} {gigabytes(size)}" for axis, size in costs.sent.items()),
        )
        lines.append(HEAD.format(*cells))
    for row in plan.rows:
        if not row.fits:
            lines.append(
                f"{mesh_name(row)} does not fit into {gigabytes(USABLE * chip.memory)} of a device. What helps:"
            )
            lines += [f"    {note}" for note in row.notes]
    return "\n".join(lines)


def mesh_name(row: Row) -> str:
    """data=2 fsdp=4."""
    return " ".join(f"{axis}={size}" for axis, size in row.mesh.items()) or "one device"
