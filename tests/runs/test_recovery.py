"""What comes to grief while real processes train: a kill, a read that never returns, a start that does not fit."""

import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import sys
import time

import pytest

from nova_jax import config as configs
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.training.watch import Limits
from tests import tiny_run, xla_flags

ROOT = pathlib.Path(__file__).parents[2]
WORKER = pathlib.Path(__file__).with_name("faulty.py")
STEPS = 8

pytestmark = pytest.mark.long


def environment():
    """Without a cache of compiled programs, which process 0 alone fills: the others would keep it waiting."""
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": xla_flags.known(),
    }


def launch(processes, devices, *runs, fault=()):
    """So many processes that train the configs one after the other: the exit code, and what they said."""
    paths = []
    for config in runs:
        paths.append(f"{config.directory}.json")
        pathlib.Path(paths[-1]).write_text(json.dumps(configs.to_dict(config)))
    nova = [sys.executable, "-c", "from nova_jax import cli; cli.main()", "launch"]
    places = ["--processes", str(processes), "--devices", str(devices), "--"]
    command = [*nova, *places, sys.executable, str(WORKER), *map(str, fault), *paths]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    return done.returncode, done.stderr


def losses(run_dir):
    """By step; each step is there once, in order."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    return [struct.unpack(">f", bytes.fromhex(line["loss_bits"]))[0] for line in lines]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A run of which one of two processes was killed in its fifth step; how it ended; and an undisturbed one."""
    folder = tmp_path_factory.mktemp("killed")
    config = dataclasses.replace(
        tiny_run.make_config(folder),
        preview=None,
        steps=STEPS,
        batch_size=12,
        mesh=MeshConfig(fsdp=2),
        limits=Limits(heartbeat=15),
    )
    undisturbed = dataclasses.replace(config, run_dir=str(folder / "undisturbed"))
    code, error = launch(1, 2, undisturbed)
    assert code == 0, error[-3000:]
    return config, launch(2, 2, config, fault=("--kill", 1, 5))


def test_a_killed_process_ends_the_other_with_a_sentence_that_names_it(killed):
    config, (code, error) = killed
    assert code == 128 + 9, "the code of the first that ended"
    (sentence,) = [line for line in error.splitlines() if "gave no sign of life" in line]
    assert f"process 1 of 2 on {socket.gethostname()} gave no sign of life for 15 s" in sentence
    events = [json.loads(line)["event"] for line in (config.directory / "events.jsonl").read_text().splitlines()]
    assert events[-1] in sentence


@pytest.mark.parametrize("processes", [1, 3])
def test_what_a_killed_run_has_saved_goes_on_as_any_number_of_processes(killed, tmp_path, processes):
    config, _ = killed
    resumed = dataclasses.replace(config, run_dir=str(tmp_path / "run"))
    shutil.copytree(config.directory, resumed.directory)
    code, error = launch(processes, 2, resumed)
    assert code == 0, error[-3000:]
    events = (resumed.directory / "events.jsonl").read_text()
    assert re.search("resumed at step [24] of 8", events), "what was saved in step 4 may not be whole in step 5"
    expected = losses(config.directory.parent / "undisturbed")
    assert len(expected) == STEPS
    assert losses(resumed.directory) == pytest.approx(expected, rel=1e-6)


def test_a_read_that_never_returns_ends_all_processes_within_the_limit(tmp_path):
    config = tiny_run.make_config(tmp_path)
    data = dataclasses.replace(config.data, in_memory=False)
    limits = Limits(step=5.0, start=600.0, heartbeat=60)
    config = dataclasses.replace(config, data=data, preview=None, steps=100, checkpoint_every=100, limits=limits)
    code, error = launch(2, 1, config, fault=("--hang", 1, 40))
    ended = time.time()
    assert code == 76
    sentences = {line.removeprefix("[1] ") for line in error.splitlines() if "has not moved" in line}
    assert len(sentences) == 1, error[-3000:]
    assert f"process 1 of 2 on {socket.gethostname()} has not moved for 5 s in step" in sentences.pop()
    assert "waiting for a batch" in error
    assert "in blocking" in error, "the stacks show the read"
    assert ended - (config.directory / "log.jsonl").stat().st_mtime < 5 + 5


def start(folders, config, counts=None):
    """One process for each folder that it runs in, of as many as each is told there are."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    processes = []
    for index, folder in enumerate(folders):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(configs.to_dict(config)))
        env = {
            "NOVA_COORDINATOR": address,
            "NOVA_NUM_PROCESSES": str((counts or [len(folders)] * len(folders))[index]),
            "NOVA_PROCESS_ID": str(index),
        }
        command = [sys.executable, str(WORKER), "config.json"]
        env = environment() | {"JAX_PLATFORMS": "cpu"} | env
        processes.append(subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True))
    try:
        return [(process.communicate(timeout=600)[1], process.returncode) for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_processes_that_do_not_share_the_run_folder_are_refused_at_the_start(tmp_path):
    config = dataclasses.replace(tiny_run.make_config(tmp_path), run_dir="run", preview=None)
    for error, code in start([tmp_path / "a", tmp_path / "b"], config):
        assert code == 1
        assert f"process 1 of 2 does not train the run of process 0: {socket.gethostname()} sees another" in error
        assert f"{tmp_path / 'b' / 'run'}: give all a run_dir that they share" in error
    assert not list(tmp_path.glob("*/run/checkpoints"))


def test_processes_that_were_told_different_numbers_are_refused(tmp_path):
    config = dataclasses.replace(tiny_run.make_config(tmp_path), limits=Limits(join=20))
    (first, code_0), (second, code_1) = start([tmp_path / "a", tmp_path / "b"], config, counts=[2, 3])
    assert (code_0, code_1) == (1, 1)
    assert "process 0 was told NOVA_NUM_PROCESSES=2 and process 1 3: start all with the same number" in first
    assert "process 1 was told NOVA_NUM_PROCESSES=3 and process 0 2: start all with the same number" in second


@pytest.mark.parametrize("index", [0, 1])
def test_who_waits_in_vain_says_where_how_long_and_for_whom(index):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    program = (
        "import sys; from nova_jax.parallel import distributed; distributed.initialize(*sys.argv[1:], join_seconds=2)"
    )
    command = [sys.executable, "-c", program, address, "2", str(index)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    found = f"process {index} of 2 waited 2 s at {address} for the others" if index == 0 else ""
    found = found or f"process 1 of 2 on {socket.gethostname()} found no coordinator at {address} within 2 s: process 0"
    assert found in done.stderr
