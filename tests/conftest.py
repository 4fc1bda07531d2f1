"""Eight simulated devices, strict ranks and exact float32 for every test."""

import fcntl
import os
import pathlib
import shutil
import tempfile

from tests import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {xla_flags.known()}"

import jax
import pytest

# The processes of one test run compile each program once: many tests begin with the same ones.
OWNS_CACHE = "NOVA_TEST_CACHE" not in os.environ
CACHE = os.environ.setdefault("NOVA_TEST_CACHE", tempfile.mkdtemp(prefix="nova_jax_tests_") if OWNS_CACHE else "")
jax.config.update("jax_compilation_cache_dir", CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_default_matmul_precision", "float32")


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The optional folder with public reference data (`NOVA_SHARED`); tests that need it skip without it."""
    root = os.environ.get("NOVA_SHARED")
    if not root or not pathlib.Path(root).is_dir():
        pytest.skip("set NOVA_SHARED to a folder with data/ and reference/ to run this test")
    return pathlib.Path(root)


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make): the path that make(folder) returns, made by the process of this test run that asks first."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def get(name, make):
        folder = root / name
        folder.mkdir(exist_ok=True)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            made = folder / "made"
            if not made.exists():
                made.write_text(str(make(folder)))
        return pathlib.Path(made.read_text())

    return get


def pytest_sessionfinish(session):
    if OWNS_CACHE:  # the process that started the others
        shutil.rmtree(CACHE, ignore_errors=True)
