"""What a run ran on: versions, devices, and the peak FLOP/s that its MFU is measured against."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import time
from typing import Any

import jax
import jax.numpy as jnp

import nova_jax
from nova_jax.models import flops

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "safetensors")


def versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result; a package that is not installed is left out."""
    found = {"nova_jax": nova_jax.__version__, "python": platform.python_version()}
    installed = {dist.metadata["Name"].lower().replace("_", "-") for dist in importlib.metadata.distributions()}
    return found | {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}


def measured_peak(size: int, dtype: Any, repeats: int = 4) -> float:
    """FLOP/s of a square matrix product of this size on the default device: the best of a few repeats."""
    x = jax.random.normal(jax.random.key(0), (size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        multiply(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds)


def peak_flops() -> tuple[float, str]:
    """Peak FLOP/s of all devices together, and where the number comes from.

    Accelerators are looked up in `models.flops.PEAK_FLOPS` (dense bf16, vendor's figure). For those not listed, and
    for a CPU, a matrix product is timed; simulated devices share the one processor of their host.
    """
    kind, count = jax.devices()[0].device_kind, jax.device_count()
    if peak := flops.peak_flops(kind):
        return peak * count, f"{count} x {kind}, dense bf16, data sheet"
    if jax.default_backend() == "cpu":
        return measured_peak(2048, jnp.float32) * jax.process_count(), "float32 2048 x 2048 product, measured at start"
    return measured_peak(8192, jnp.bfloat16) * count, f"{count} x bfloat16 8192 x 8192 product, measured at start"


def processor() -> str:
    """The kind of this host's processor, with a digest of the instructions that it knows where Linux lists them."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    known = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()} {hashlib.sha256(known.encode()).hexdigest()[:8]}"


def xla_flags() -> str:
    """The options of the compiler that the user has set."""
    return os.environ.get("XLA_FLAGS", "")


def describe() -> dict[str, Any]:
    """Versions, platform and devices, as JSON-able values."""
    devices = jax.devices()
    return {
        "versions": versions(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
    }
