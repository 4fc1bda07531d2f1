"""Two processes of one program do what one process on two devices does: train, preview, start from a run, distil, then
sample, evaluate and compare samplers on the mesh of both.
"""

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
from tests import tiny_canvas, tiny_run, xla_flags

ROOT = pathlib.Path(__file__).parents[2]
WORKER = pathlib.Path(__file__).with_name("worker.py")
RUNS = ("run", "continued", "student")

pytestmark = pytest.mark.long


def make_configs(folder):
    """A run with previews; one that starts from its parameters; a student of it; an editing run to evaluate."""
    mesh = MeshConfig(fsdp=2)
    first = dataclasses.replace(tiny_run.make_config(folder), mesh=mesh)
    second = dataclasses.replace(
        first, preview=None, start_from=str(folder / "run"), run_dir=str(folder / "continued"), seed=1
    )
    student = tiny_run.make_student_config(folder / "run", folder / "student", mesh=mesh)
    (folder / "edits").mkdir()
    editing = tiny_canvas.make_configs(folder / "edits")[1]
    editing = dataclasses.replace(editing, start_from=None, steps=1, mesh=mesh, preview=None)
    return dict(zip((*RUNS, "editing"), (first, second, student, editing), strict=True))


def commands(folder):
    """What `nova` is asked for once the runs are trained, on a mesh of two devices."""
    grid = "--samplers euler --steps 1 2 --pictures 6 --batch-size 4 --mesh.data 2"
    return [
        f"generate 'a red circle' --run {folder}/run --count 3 --num-steps 2 --mesh.data 1 --mesh.fsdp 2",
        f"bench --run {folder}/run {grid}",
        f"evaluate --run {folder}/edits/canvas --per-task 2",
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What two processes of one device, and one process of two, leave behind."""
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_COMPILATION_CACHE_DIR": os.environ["NOVA_TEST_CACHE"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": xla_flags.known(),
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
        command = [*nova, "launch", *options, "--", sys.executable, str(WORKER), *paths, *commands(folder)]
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


def images(folder, pattern):
    return [np.asarray(Image.open(path)).astype(int) for path in sorted(folder.glob(pattern))]


@pytest.mark.parametrize(
    ("pattern", "count"), [("run/samples/00000004.png", 1), ("run/generated/*.png", 3)], ids=["preview", "generate"]
)
def test_two_processes_sample_what_one_samples(folders, pattern, count):
    """And write each image once."""
    two, one = (images(folders[number], pattern) for number in (2, 1))
    assert len(two) == len(one) == count
    for ours, expected in zip(two, one, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1)


def test_two_processes_compare_samplers_as_one_does(folders):
    found = {}
    for number, folder in folders.items():
        lines = [json.loads(line) for line in (folder / "run" / "bench" / "results.jsonl").read_text().splitlines()]
        assert [line["kind"] for line in lines] == ["header", "model", "cell", "cell", "programs"]
        assert lines[0]["mesh"] == {"data": 2, "fsdp": 1, "context": 1, "tensor": 1}
        found[number] = [(line["nfe"], line["rmse"]["value"], line["diversity"]["value"]) for line in lines[2:4]]
    np.testing.assert_allclose(found[2], found[1], rtol=1e-4)


def test_two_processes_evaluate_as_one_does(folders):
    found = [json.loads((folders[n] / "edits" / "canvas" / "evaluation" / "scores.json").read_text()) for n in (2, 1)]
    assert len(list((folders[2] / "edits" / "canvas").glob("evaluation*"))) == 1
    two, one = ([(row["part"], row["score"], row["value"]) for row in each["scores"]] for each in found)
    assert [row[:2] for row in two] == [row[:2] for row in one]
    values = [[np.nan if row[2] is None else row[2] for row in rows] for rows in (two, one)]  # None: nothing to score
    assert np.isfinite(values).any()
    np.testing.assert_allclose(*values, atol=1e-2)
