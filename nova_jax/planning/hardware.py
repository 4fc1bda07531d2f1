"""Chips with their declared limits, and devices to compile for that are not here.

    h200:N                   N H200s, eight to a machine
    v5e:RxC   v6e:RxC        a slice of a TPU, by the shape of its torus
    v5p:XxYxZ
    here                     the devices of this process

Compilers for absent hardware come with JAX's own packages, `pip install nova-jax[plan]`: jax-cuda13-plugin without
CUDA itself, and libtpu. Without a GPU nothing can be tried out, so kernels of matrix products are not tuned, and cuDNN
is assumed to be as new as `H200_CONFIG` says.

Limits are those of data sheets, per device:

    H100, H200    NVIDIA data sheets; NVLink 4: 450 GB/s each way; between machines one 400 Gbit/s adapter a GPU
                  (DGX H200 user guide)
    TPU           cloud.google.com/tpu/docs/v5e, /v5p, /v6e; links: Austin et al. 2025, "How to Scale Your Model",
                  chapter 2: of one axis of the torus, both directions together
"""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from nova_jax import environment
from nova_jax.models import flops

GIB = 2**30
HERE = "here"
INSTALL = {
    "cuda": 'pip install "jax[cuda13-local]=={jax}"',
    "tpu": 'pip install "jax[tpu]=={jax}"',
}
KINDS = {  # `jax.Device.device_kind`
    "h200": ("NVIDIA H200",),
    "v5e": ("TPU v5 lite", "TPU v5e"),
    "v5p": ("TPU v5", "TPU v5p"),
    "v6e": ("TPU v6 lite", "TPU v6e"),
}
PLUGINS = {"cuda": "jax_cuda13_plugin", "tpu": "libtpu"}
H200_CONFIG = """gpu_device_info { threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
 shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000
 l2_cache_size: 62914560 clock_rate_ghz: 1.98 device_memory_size: 149250113536 shared_memory_per_block_optin: 232448
 registers_per_core_limit: 65536 registers_per_block_limit: 65536 cuda_compute_capability { major: 9 } }
 platform_name: "CUDA" dnn_version_info { major: 9 minor: 10 } runtime_version { major: 13 }
 device_description_str: "NVIDIA H200" """
OPTIONS = {"cuda": {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One device, by its data sheet."""

    flops: float  # dense bfloat16, FLOP/s
    memory: int  # bytes
    bandwidth: float  # bytes/s of that memory
    link: float  # bytes/s that it sends to neighbours
    machine: int = 0  # devices that such links join; 0: all
    network: float = 0.0  # bytes/s that it sends to another machine
    launch: float = 0.0  # seconds that a kernel takes at least; see `planning.roofline`


PEAK = flops.PEAK_FLOPS
CHIPS = {
    "h200": Chip(
        flops=PEAK["NVIDIA H200"],
        memory=141 * 10**9,
        bandwidth=4.8e12,
        link=450e9,
        machine=8,
        network=50e9,
        launch=1e-6,
    ),
    "v5e": Chip(flops=PEAK["TPU v5e"], memory=16 * GIB, bandwidth=819e9, link=90e9),
    "v5p": Chip(flops=PEAK["TPU v5"], memory=95 * GIB, bandwidth=2765e9, link=180e9),
    "v6e": Chip(flops=PEAK["TPU v6e"], memory=32 * GIB, bandwidth=1638e9, link=180e9),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """What to compile for."""

    name: str  # h200:8
    chip: Chip
    platform: str  # cuda, tpu; of `here` that of JAX
    shape: tuple[int, ...]  # of the torus, or the number of devices

    @property
    def count(self) -> int:
        """Devices."""
        return math.prod(self.shape)

    @property
    def chip_name(self) -> str:
        """What stands before the shape."""
        return self.name.partition(":")[0]


def find(name: str) -> Target:
    """The target of a name such as h200:8, v5e:2x4 or v5p:8x8x4.

    Raises:
        ValueError: an unknown chip, or not a shape of it.
    """
    if name == HERE:
        return _here()
    chip, _, shape = name.partition(":")
    if chip not in CHIPS:
        raise ValueError(
            f"unknown target {name!r}: use {HERE}, or one of {', '.join(CHIPS)} with a shape, as in h200:8"
        )
    lengths = {"h200": 1, "v5p": 3}
    dims = lengths.get(chip, 2)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) or shape.count("x") + 1 != dims:
        example = {1: "8", 2: "2x4", 3: "4x4x4"}[dims]
        raise ValueError(f"target {name!r}: {chip} takes {dims} number{'s' * (dims > 1)}, as in {chip}:{example}")
    platform = "cuda" if chip == "h200" else "tpu"
    target = Target(name=name, chip=CHIPS[chip], platform=platform, shape=tuple(map(int, shape.split("x"))))
    if platform == "cuda" and target.count > 8 and target.count % 8:
        raise ValueError(f"target {name!r}: more than one machine of H200s is a multiple of 8")
    return target


def _here() -> Target:
    """The devices of this process; what no data sheet says of them is measured."""
    kind, platform, count = jax.devices()[0].device_kind, jax.default_backend(), jax.device_count()
    known = [chip for name, chip in CHIPS.items() if kind in KINDS[name]]
    if known:
        return Target(name=HERE, chip=known[0], platform=platform, shape=(count,))
    peak, _ = environment.peak_flops()
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )
    bandwidth = measured_bandwidth()
    chip = Chip(flops=peak / count, memory=memory // count, bandwidth=bandwidth / count, link=bandwidth / count)
    return Target(name=HERE, chip=chip, platform=platform, shape=(count,))


def measured_bandwidth(size: int = 2**26, repeats: int = 4) -> float:
    """Bytes/s that a copy of so many float32 numbers reads and writes on the default device: the best of a few."""
    x = jnp.zeros(size)
    add = jax.jit(lambda x: x + 1)
    add(x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        add(x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * x.nbytes / min(seconds)


def devices(target: Target) -> Sequence[Any]:
    """Devices that can be compiled for and hold nothing.

    Raises:
        ImportError: the compiler is not installed.
        ValueError: there is no slice of this shape.
    """
    if target.name == HERE:
        return jax.devices()
    if importlib.util.find_spec(PLUGINS[target.platform]) is None:
        install = INSTALL[target.platform].format(jax=importlib.metadata.version("jax"))
        raise ImportError(f"the compiler for {target.name} is missing: {install}")
    try:
        if target.platform == "cuda":
            machines = max(target.count // 8, 1)
            topology = f"1x{machines}x{target.count // machines}"
            return topologies.get_topology_desc("", "cuda", target_config=H200_CONFIG, topology=topology).devices
        with _no_search_for_tpus():
            return topologies.get_topology_desc(target.name, "tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(f"target {target.name!r}: {str(error).splitlines()[0][:300]}") from error


@contextlib.contextmanager
def _no_search_for_tpus() -> Iterator[None]:
    """Keeps libtpu, which reads these when it is loaded, from looking for TPUs and for others that use them."""
    values = {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-8",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_LOG_DIR": "disabled",
    }
    before = {name: os.environ.get(name) for name in values}
    os.environ.update({name: value for name, value in values.items() if before[name] is None})
    yield
    for name in [name for name in values if before[name] is None]:
        del os.environ[name]


@contextlib.contextmanager
def standing_in(target: Target) -> Iterator[None]:
    """Programs with cuDNN attention can be traced, lowered and compiled inside, though no GPU tells its version."""
    if target.name == HERE or target.platform != "cuda":
        yield
        return
    kernels: Any = importlib.import_module("jax._src.cudnn.fused_attention_stablehlo")
    before = kernels.check_cudnn_version, kernels.check_compute_capability
    kernels.check_cudnn_version = lambda: 91000  # as in H200_CONFIG
    kernels.check_compute_capability = lambda capability: True
    try:
        yield
    finally:
        kernels.check_cudnn_version, kernels.check_compute_capability = before


def compile_for(target: Target, lowered: Any) -> Any:
    """`lowered.compile()` with what the compiler of an absent device must be told."""
    return lowered.compile(None if target.name == HERE else OPTIONS.get(target.platform))
