"""Two processes of one program do what one process on two devices does: train, preview, start from a run, distil."""

import dataclasses
import json
import os
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nova_jax import config as configs
from nova_jax.parallel.mesh import MeshConfig
from tests import tiny_run

ROOT = pathlib.Path(__file__).parents[2]
WORKER = pathlib.Path(__file__).with_name("worker.py")
RUNS = ("run", "continued", "student")

pytestmark = pytest.mark.long


def make_configs(folder):
    """A run with previews; one that starts from its parameters; a student of it."""
    mesh = MeshConfig(fsdp=2)
    first = dataclasses.replace(tiny_run.make_config(folder), mesh=mesh)
    second = dataclasses.replace(
        first, preview=None, start_from=str(folder / "run"), run_dir=str(folder / "continued"), seed=1
    )
    student = tiny_run.make_student_config(folder / "run", folder / "student", mesh=mesh)
    return dict(zip(RUNS, (first, second, student), strict=True))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What two processes of one device, and one process of two, leave behind."""
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": os.environ["NOVA_TEST_CACHE"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    found = {}
    for processes in (2, 1):
        folder = found[processes] = tmp_path_factory.mktemp(f"processes_{processes}")
        paths = []
        for name, config in make_configs(folder).items():
            paths.append(str(folder / f"{name}.json"))
            pathlib.Path(paths[-1]).write_text(json.dumps(configs.to_dict(config)))
        nova = [sys.executable, "-c", "from nova_jax import cli; cli.main()"]
        options = ["--processes", str(processes), "--devices", str(2 // processes)]
        command = [*nova, "launch", *options, "--", sys.executable, str(WORKER), *paths]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    return found


def losses(folder, run):
    lines = [json.loads(line) for line in (folder / run / "log.jsonl").read_text().splitlines()]
    return [struct.unpack(">f", bytes.fromhex(line["loss_bits"]))[0] for line in lines]


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_have_the_losses_of_one_on_as_many_devices(folders, run):
    """But for the rounding of float32; the student starts as its teacher, so its losses are near zero."""
    assert len(losses(folders[2], run)) == 4
    assert losses(folders[2], run) == pytest.approx(losses(folders[1], run), rel=1e-5, abs=1e-8)


def test_two_processes_preview_what_one_previews(folders):
    two, one = (np.asarray(Image.open(folders[number] / "run" / "samples" / "00000004.png")) for number in (2, 1))
    np.testing.assert_allclose(two.astype(int), one.astype(int), atol=1)
