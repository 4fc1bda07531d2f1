"""Decoding 720p video at 24 fps in constant memory: the published autoencoder's size, random weights, MP4 files.

    python -m experiments.studies.reel_full_size                      25, 49 and 145 frames of 1280 x 704
    python -m experiments.studies.reel_full_size dtype=bfloat16       half the memory; what a GPU should be given
    python -m experiments.studies.reel_full_size dtype=bfloat16 frames=25,49,145 height=48 width=64 tile=3,3 overlap=2

Latents of the autoencoder of Wan 2.2 TI2V-5B (4 x 16 x 16 pixels each, 48 channels) are decoded chunk by chunk and tile
by tile (`models.tiling`) and written as they come. Every length runs in a process of its own, which says what it took
of memory at its highest; nothing of it grows with the number of frames. FLOPs are XLA's count of the compiled parts.
Results: one JSON line per length, and all of them in `report`.

A latent frame of 1280 x 704, four frames of video, costs 66 TFLOP, in the eight tiles of the default 86: 0.5 PFLOP for
25 frames, 1.0 for 49, 3.1 for 145. In bfloat16 weights hold 1.0 GiB, the past of all tiles 3.9 and the work on one tile
1.7 on a CPU (XLA's plan): 6.6 GiB for any number of frames, 7.8 as measured at nine on one core, which took 30 minutes
a latent frame (`results/reel_decode_720p_cpu.json`); float32 needs more than 8. With several devices each works on
tiles of its own. The last command above, the same in small, is what `results/reel_decode_cpu.json` has: 1.8 GB for
every length.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax import config as configs
from nova_jax import environment
from nova_jax.config import ConfigError
from nova_jax.models import presets, tiling
from nova_jax.models.vae import VAE
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decode:
    """What to decode, and how.

    Attributes:
        frames: lengths of the videos, each 1 + 4 n.
        height: in pixels, a multiple of 16.
        width: likewise.
        tile: rows and columns of a tile, in latents.
        overlap: latents that neighbouring tiles share.
        chunk: latent frames decoded at a time, four frames of video each.
        dtype: of parameters, computation and what is kept of the past.
        out: folder for the MP4 files.
        report: JSON file for the results.
        limit_s: seconds after which a length is given up; its line says how far it came.
        seed: of weights and latents.
    """

    frames: tuple[int, ...] = (25, 49, 145)
    height: int = 704
    width: int = 1280
    tile: tuple[int, int] = (24, 24)
    overlap: int = 4
    chunk: int = 1
    dtype: Any = jnp.float32
    out: str = "runs/reel_full_size"
    report: str | None = None
    limit_s: float | None = None
    seed: int = 0


def main(arguments: list[str]) -> None:
    """Each length in a process of its own, since memory is measured at its highest; `--here`: one length in this."""
    try:
        plan = configs.override(Decode(), [text for text in arguments if text != "--here"])
        presets.vae("wan2.2").latent_shape(plan.frames[0], plan.height, plan.width)
    except (ConfigError, ValueError) as error:
        sys.exit(f"reel_full_size: {error}")
    if "--here" in arguments:
        print(json.dumps(decode(plan)))
        return
    records = []
    for frames in plan.frames:
        records.append(_in_own_process(plan, frames, arguments))
        print(json.dumps(records[-1]), flush=True)
    if plan.report:
        command = "python -m experiments.studies.reel_full_size " + " ".join(arguments)
        facts = {"command": command, "environment": environment.describe(), "videos": records}
        pathlib.Path(plan.report).write_text(json.dumps(facts, indent=1) + "\n")


def decode(plan: Decode) -> dict[str, Any]:
    """Decodes the first length, writes its MP4, and says what it took."""
    vae, frames = presets.vae("wan2.2", dtype=plan.dtype), plan.frames[0]
    tiles = tiling.Tiles(size=plan.tile, overlap=plan.overlap)
    mesh = MeshConfig(data=-1).make() if jax.device_count() > 1 else None
    shape = vae.latent_shape(frames, plan.height, plan.width)
    params = random_params(vae, plan.dtype, plan.seed)
    seconds: list[float] = []
    resident: list[int] = []

    def images() -> Iterator[np.ndarray]:
        began = time.perf_counter()
        for pixels in tiling.decode_stream(vae, params, latent_chunks(shape, plan), tiles, mesh=mesh):
            seconds.append(time.perf_counter() - began)
            resident.append(peaks()["peak_resident_bytes"] or 0)
            print(f"{frames} frames: {len(seconds)} chunks after {sum(seconds):.0f} s", file=sys.stderr, flush=True)
            yield np.round((np.asarray(pixels[0]) + 1) * 127.5).astype(np.uint8)
            began = time.perf_counter()

    path = pathlib.Path(plan.out) / f"{frames}_frames.mp4"
    path.parent.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    facts = {"frames": frames, "prompt": "random latents through random weights"}
    write_mp4(path, images(), fps=24, metadata={name: str(value) for name, value in facts.items()})
    return {
        "frames": frames,
        "latents": list(shape),
        "dtype": jnp.dtype(plan.dtype).name,
        "tiles": len(tiles.place(*shape[1:3])),
        "seconds": round(time.perf_counter() - began, 1),
        # The first two chunks compile their programs.
        "seconds_per_latent_frame": round(float(np.mean(seconds[2:])) / plan.chunk, 2) if len(seconds) > 2 else None,
        "flops": flops(vae, shape, plan, tiles),
        "mp4_bytes": path.stat().st_size,
        "peak_resident_bytes_by_chunk": resident,
        **peaks(),
    }


def random_params(vae: VAE, dtype: Any, seed: int) -> Params:
    """A decoder whose every parameter is drawn, one after the other, so that nothing is held twice."""
    rng = np.random.default_rng(seed)

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        scale = 1.0 if leaf.ndim < 2 else float(np.prod(leaf.shape[:-1])) ** -0.5
        return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32), dtype)

    return {"decoder": jax.tree.map(draw, jax.eval_shape(vae.init, jax.random.key(0))["decoder"])}


def chunk_lengths(latent_frames: int, chunk: int) -> list[int]:
    """One latent frame, then `chunk` at a time, then what is left."""
    whole, rest = divmod(latent_frames - 1, chunk)
    return [1] + [chunk] * whole + [rest] * (rest > 0)


def latent_chunks(shape: tuple[int, ...], plan: Decode) -> Iterator[np.ndarray]:
    """Latents drawn as they are needed."""
    rng = np.random.default_rng(plan.seed + 1)
    for length in chunk_lengths(shape[0], plan.chunk):
        yield rng.standard_normal((1, length, *shape[1:]), np.float32)


def write_mp4(path: pathlib.Path, images: Iterator[np.ndarray], **options: Any) -> None:
    """Writes frames as they come."""
    importlib.import_module("nova_jax.media.mp4").write_mp4(path, images, **options)


def flops(vae: VAE, shape: tuple[int, ...], plan: Decode, tiles: tiling.Tiles) -> dict[str, float]:
    """What decoding costs, by XLA's count of a tile's programs; and what it would cost without tiles."""
    rows, columns = (min(pair) for pair in zip(plan.tile, shape[1:3], strict=True))
    first, later = _flops_of_programs(vae, rows, columns)
    whole_first, whole_later = _flops_of_programs(vae, *shape[1:3])
    count, rest = len(tiles.place(*shape[1:3])), shape[0] - 1
    return {
        "total": count * (first + rest * later),
        "per_latent_frame": count * later,
        "untiled_total": whole_first + rest * whole_later,
    }


def _flops_of_programs(vae: VAE, rows: int, columns: int) -> tuple[float, float]:
    """Of the first latent frame of a video, and of a later one."""
    params = jax.eval_shape(vae.init, jax.random.key(0))
    latents = jax.ShapeDtypeStruct((1, 1, rows, columns, vae.latent_channels), jnp.float32)
    _, cache = jax.eval_shape(vae.decode_chunk, params, latents)
    step = jax.jit(vae.decode_chunk)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # where XLA counts; not on every GPU
        costs: list[Any] = [step.lower(params, latents, past).cost_analysis() for past in (None, cache)]
    return costs[0]["flops"], costs[1]["flops"]


def peaks() -> dict[str, int | None]:
    """The most memory that this process has held on the host, and each device at its highest, in bytes."""
    # What `getrusage` says may be inherited from the process before; not every system has /proc.
    resident = _peak_of(os.getpid()) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    devices = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in devices if peak is not None]
    return {"peak_resident_bytes": resident, "peak_device_bytes": max(known, default=None)}


def _in_own_process(plan: Decode, frames: int, arguments: list[str]) -> dict[str, Any]:
    """The record of one length; of one that is given up, the memory it had taken by then."""
    command = [sys.executable, "-m", "experiments.studies.reel_full_size", "--here", *arguments, f"frames={frames},"]
    began, peak = time.monotonic(), 0
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_frugal_environment())
    while child.poll() is None:
        if plan.limit_s is not None and time.monotonic() - began > plan.limit_s:
            child.kill()
            child.wait()
            return {"frames": frames, "given_up_after_s": plan.limit_s, "peak_resident_bytes": peak}
        peak = max(peak, _peak_of(child.pid))
        time.sleep(0.2)
    if child.returncode or child.stdout is None:
        sys.exit(f"reel_full_size: decoding {frames} frames failed with code {child.returncode}")
    return json.loads(child.stdout.read().splitlines()[-1])


def _frugal_environment() -> dict[str, str]:
    """Makes XLA's CPU compiler copy weights when it needs them, which it otherwise does for all at once."""
    if tuple(map(int, jax.__version__.split(".")[:2])) < (0, 10):  # an unknown flag would end the process
        return dict(os.environ)
    flags = os.environ.get("XLA_FLAGS", "")
    return {**os.environ, "XLA_FLAGS": f"{flags} --xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED".strip()}


def _peak_of(pid: int) -> int:
    try:
        lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return max((1024 * int(text.split()[1]) for text in lines if text.startswith("VmHWM")), default=0)


if __name__ == "__main__":
    main(sys.argv[1:])
