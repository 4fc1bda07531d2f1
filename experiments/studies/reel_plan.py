"""Whether the published 5B video model samples 720p on eight TPU chips: compiled ahead of time, with no TPU.

    python -m experiments.studies.reel_plan                           every case, into results/reel_plan_tpu.json
    python -m experiments.studies.reel_plan slice=v6e:2x4 frames=145 mesh.context=8

The program is the whole of sampling: a loop of 50 steps of classifier-free guidance over Wan 2.2 TI2V-5B in bfloat16,
its parameters placed by `parallel.rules` and its tokens cut over the context axis. The TPU compiler that `pip install
libtpu` brings says what each chip would hold and which collectives it would run; it refuses what does not fit. FLOPs
are the closed form of `models.flops`, because the compiler counts a loop's body once.

It fits. For 145 frames (32,560 tokens, 68 PFLOP) a v5e chip of 15.75 GiB holds 10.8 at its highest with the tokens cut
in eight, 9.4 of them parameters, and 5.4 with the tokens cut in four and the matrices in two.
"""

import collections
import dataclasses
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from nova_jax import config as configs
from nova_jax import environment, sampling
from nova_jax.config import ConfigError
from nova_jax.diffusion import denoiser, guidance, schedules
from nova_jax.models import presets
from nova_jax.parallel import rules
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.planning import hardware
from nova_jax.sampling import time_grids
from nova_jax.types import Conditioning, Params

RESULT = pathlib.Path(__file__).parents[1] / "results" / "reel_plan_tpu.json"
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
DTYPE_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One case.

    Attributes:
        slice: chips as the TPU compiler names them; (2x4 of v5e and v6e, 2x2x2 of v5p are eight).
        frames: of the video, 1 + 4 n.
        height: of the video, in pixels.
        width: likewise.
        mesh: how parameters and tokens are cut; one video leaves nothing for data.
        num_steps: of sampling.
        text_length: tokens of the caption.
    """

    slice: str = "v5e:2x4"
    frames: int = 121
    height: int = 704
    width: int = 1280
    mesh: MeshConfig = MeshConfig(data=1, context=8)
    num_steps: int = 50
    text_length: int = 512


CASES = (
    Plan(frames=121),
    Plan(frames=145),
    Plan(frames=145, mesh=MeshConfig(data=1, context=4, tensor=2)),
    Plan(frames=145, slice="v6e:2x4"),
)


def compile_case(plan: Plan) -> dict[str, Any]:
    """What the compiler says of one case; `fits` is False, with its reason, where it refuses."""
    dit = presets.dit("wan-5B", dtype=jnp.bfloat16, remat="none")
    latents = presets.vae("wan2.2").latent_shape(plan.frames, plan.height, plan.width)
    chips = hardware.devices(hardware.find(plan.slice))
    mesh = plan.mesh.make(chips)
    text = jax.ShapeDtypeStruct((1, plan.text_length, dit.text_dim), jnp.bfloat16)
    init = lambda key: dit.init(key, jnp.zeros((1, *latents)), jnp.zeros(1))["params"]  # noqa: E731
    shapes = jax.eval_shape(init, jax.random.key(0))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), shapes)
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        rules.shardings(shapes, mesh),
    )
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    noise = jax.ShapeDtypeStruct((1, *latents), jnp.float32, sharding=whole)
    text = jax.ShapeDtypeStruct(text.shape, text.dtype, sharding=whole)
    evaluations = 2 * plan.num_steps
    record: dict[str, Any] = {
        "slice": plan.slice,
        "chip": chips[0].device_kind,
        "mesh": {axis: size for axis, size in mesh.shape.items() if size > 1},
        "frames": plan.frames,
        "tokens": latents[0] * latents[1] * latents[2] // 4,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "evaluations": evaluations,
        "flops": evaluations * dit.flops(latents[:3], plan.text_length),
    }
    began = time.perf_counter()
    try:
        with jax.set_mesh(mesh):
            lowered = jax.jit(make_sampler(dit, plan.num_steps)).lower(params, noise, text, text)
            compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return record | {"fits": False, "reason": _first_line(error)}
    memory: Any = compiled.memory_analysis()
    return record | {
        "fits": True,
        "compile_seconds": round(time.perf_counter() - began, 1),
        "bytes_per_chip": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "results": memory.output_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
        },
        "collectives": collectives(compiled.as_text() or ""),
    }


def make_sampler(dit: Any, num_steps: int) -> Any:
    """(params, noise, text, negative text) -> latents, by Euler steps of classifier-free guidance at scale 5."""

    def apply(params: Params, x: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        return dit.apply({"params": params}, x, t, cond)

    def sample(params: Params, noise: jax.Array, text: jax.Array, negative: jax.Array) -> jax.Array:
        plain = denoiser.make_denoiser(apply, params, schedules.RectifiedFlow(), "velocity")
        guided = guidance.classifier_free(plain, 5.0, guidance.negative(Conditioning(text=negative)))
        times = time_grids.uniform(num_steps)
        cond = Conditioning(text=text)
        return sampling.sample(
            guided, noise, sampler=sampling.Euler(), times=times, schedule=schedules.RectifiedFlow(), cond=cond
        ).x

    return sample


def collectives(program: str) -> dict[str, dict[str, int]]:
    """How often each kind stands in a compiled program, and the bytes of its results on one chip.

    Those inside a loop stand there once: per layer and step, or per block of queries.
    """
    found: dict[str, dict[str, int]] = collections.defaultdict(lambda: {"count": 0, "bytes": 0})
    pattern = re.compile(rf"= (.*?) ({'|'.join(COLLECTIVES)})(-start)?\(")
    for result, kind, _ in pattern.findall(program):
        sizes = [
            DTYPE_BYTES.get(dtype, 4) * _product(shape)
            for dtype, shape in re.findall(r"([a-z]+\d*)\[([\d,]*)\]", result)
        ]
        found[kind]["count"] += 1
        found[kind]["bytes"] += max(sizes, default=0)
    return dict(found)


def _product(shape: str) -> int:
    total = 1
    for size in filter(None, shape.split(",")):
        total *= int(size)
    return total


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:400]


def describe(record: dict[str, Any]) -> str:
    """One line about one case."""
    case = f"{record['slice']} {record['mesh']} {record['frames']} frames, {record['tokens']} tokens"
    if not record["fits"]:
        return f"{case}: does not fit: {record['reason']}"
    sizes = {name: f"{value / 2**30:.2f}" for name, value in record["bytes_per_chip"].items()}
    return f"{case}: fits; GiB per chip {sizes}, {record['flops'] / 1e15:.0f} PFLOP, {record['collectives']}"


def main(arguments: list[str]) -> None:
    """One case, printed; or, without arguments, all of them, each in a process of its own, printed and written."""
    jax.config.update("jax_platforms", "cpu")  # of what is computed before anything is compiled
    try:
        hardware.devices(hardware.find(CASES[0].slice))
    except ImportError as error:
        sys.exit(f"reel_plan: {error}")
    if arguments:
        try:
            record = compile_case(configs.override(Plan(), arguments))
        except ConfigError as error:
            sys.exit(f"reel_plan: {error}")
        print(json.dumps(record) if not sys.stdout.isatty() else describe(record))
        return
    records = []
    for plan in CASES:
        values = [f"slice={plan.slice}", f"frames={plan.frames}"]
        values += [f"mesh.{axis}={size}" for axis, size in dataclasses.asdict(plan.mesh).items()]
        command = [sys.executable, "-m", "experiments.studies.reel_plan", *values]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        records.append(json.loads(done.stdout.splitlines()[-1]))
        print(describe(records[-1]), flush=True)
    versions = environment.versions() | {"libtpu": importlib.metadata.version("libtpu")}
    facts = {"command": "python -m experiments.studies.reel_plan", "versions": versions, "cases": records}
    RESULT.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
