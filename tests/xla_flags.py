"""Flags with which XLA compiles quickly: tests spend their time on programs that run once."""

import mmap
import pathlib
from importlib import metadata

WANTED = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",  # they take three quarters of the time
)


def known() -> str:
    """Those that this jaxlib has: one that it does not know would end the process."""
    libraries = [pathlib.Path(path.locate()) for path in metadata.files("jaxlib") or () if path.suffix == ".so"]
    largest = max(libraries, key=lambda path: path.stat().st_size)
    with largest.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
        return " ".join(flag for flag in WANTED if library.find(flag.strip("-").partition("=")[0].encode()) >= 0)
