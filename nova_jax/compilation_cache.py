"""The persistent compilation cache of jax in a run folder: what one process compiled, a later one reads.

    RUN/cache      programs that took a second or more to compile; on a GPU also what autotuning found

jax knows a program by its code, its options, its devices and the versions of jax and the compiler, so the folder never
needs to be emptied and may be deleted. It holds machine code: delete that of a run folder which somebody else made.

Of several processes only the first one writes it. One that finds a program while others compile theirs waits for them
in its next exchange, where Gloo, between CPUs, gives up after 30 s: runs of several processes keep nothing by default.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

FOLDER = "cache"


@contextlib.contextmanager
def kept_in(run_dir: str | pathlib.Path) -> Iterator[None]:
    """A block whose programs are kept in the run folder, if there is one process.

    A folder that the user named, JAX_COMPILATION_CACHE_DIR, stays.
    """
    options: Any = jax.config
    if options.jax_compilation_cache_dir or jax.process_count() > 1:
        yield
        return
    with _set("jax_compilation_cache_dir", str(pathlib.Path(run_dir).absolute() / FOLDER)):
        yield


def unused() -> contextlib.AbstractContextManager[None]:
    """A block in which everything is compiled: what comes out of the cache cannot be written to a file again."""
    return _set("jax_enable_compilation_cache", False)


@contextlib.contextmanager
def _set(option: str, value: str | bool | None) -> Iterator[None]:
    before = getattr(jax.config, option)
    try:
        jax.config.update(option, value)
        compilation_cache.reset_cache()  # it looks at the options once
        yield
    finally:
        jax.config.update(option, before)
        compilation_cache.reset_cache()
