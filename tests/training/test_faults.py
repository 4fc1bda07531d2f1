"""Real processes, real signals: whatever interrupts a run, the losses it ends with are those of an undisturbed run."""

import json
import os
import pathlib
import random
import signal
import socket
import struct
import subprocess
import sys
import time

import pytest

from tests import xla_flags

WORKER = pathlib.Path(__file__).with_name("worker.py")
ROOT = WORKER.parents[2]
PREEMPTED = 75


@pytest.fixture(scope="module")
def launch(tmp_path_factory):
    """Starts a worker; all of them share compiled programs."""
    cache = tmp_path_factory.mktemp("compiled")
    started = []

    def start(directory, *options, devices=1, environment=None):
        env = {name: value for name, value in os.environ.items() if not name.startswith("NOVA_")}
        env |= {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} {xla_flags.known()}",
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        command = [sys.executable, str(WORKER), str(directory), *map(str, options)]
        log = (directory.parent / f"{directory.name}.output").open("a")
        process = subprocess.Popen(command, env=env | (environment or {}), stdout=log, stderr=log, cwd=ROOT)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def launch_two(launch, directory, *options, devices=2):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"

    def environment(index):
        return {"NOVA_COORDINATOR": address, "NOVA_NUM_PROCESSES": "2", "NOVA_PROCESS_ID": str(index)}

    return [launch(directory, *options, devices=devices, environment=environment(index)) for index in range(2)]


def lines(directory, name="log.jsonl"):
    path = directory / name
    return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []


def losses(directory):
    """Loss bits by step; each step must be there once, in order."""
    found = lines(directory)
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    return [line["loss_bits"] for line in found]


def starts(directory):
    """The steps at which the run was started or resumed."""
    return [event["step"] for event in lines(directory, "events.jsonl") if "starting" in event["event"]]


def output(directory):
    return (directory.parent / f"{directory.name}.output").read_text()


def finish(process, directory, code=0):
    assert process.wait(timeout=300) == code, output(directory)[-3000:]


def wait_for_step(process, directory, step):
    while process.poll() is None and not any(line["step"] >= step for line in lines(directory)):
        time.sleep(0.01)


@pytest.fixture(scope="module")
def undisturbed(launch, tmp_path_factory):
    """Losses of the 40 steps of a run that nothing interrupts."""
    directory = tmp_path_factory.mktemp("reference") / "run"
    finish(launch(directory, "--steps", 40), directory)
    found = losses(directory)
    assert len(found) == 40
    return found


def kill_until_finished(launch, directory, rng, kills, pause, *more):
    """Kills the run at random times, each a few steps further than before; returns how often."""
    done = 0
    while True:
        before = len(lines(directory))
        options = ("--steps", 40, "--checkpoint-every", 3, "--pause", pause if done < kills else 0, *more)
        process = launch(directory, *options)
        if done >= kills:
            finish(process, directory)
            return done
        wait_for_step(process, directory, min(before + rng.randint(1, 5), 40))
        time.sleep(rng.uniform(0, 0.3))
        process.kill()
        if process.wait() == 0:
            return done
        done += 1


@pytest.mark.long
def test_a_run_killed_at_random_times_ends_with_the_same_losses(launch, undisturbed, tmp_path):
    directory = tmp_path / "run"
    assert kill_until_finished(launch, directory, random.Random(0), kills=3, pause=0.05) == 3
    assert losses(directory) == undisturbed
    assert starts(directory)[0] == 0 < starts(directory)[-1], "at least one checkpoint was used"


@pytest.mark.long
def test_a_distillation_killed_at_random_times_ends_with_the_same_losses(launch, tmp_path):
    """Student, critic and both optimizer states, through real kills."""
    straight, directory = tmp_path / "straight", tmp_path / "run"
    distil = ("--distil", "dmd2")
    finish(launch(straight, "--steps", 40, *distil), straight)
    assert kill_until_finished(launch, directory, random.Random(0), 3, 0.05, *distil) == 3
    assert losses(directory) == losses(straight)
    assert starts(directory)[-1] > 0, "at least one checkpoint was used"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_a_run_killed_many_times_ends_with_the_same_losses(launch, undisturbed, tmp_path, seed):
    directory = tmp_path / "run"
    assert kill_until_finished(launch, directory, random.Random(seed), kills=8, pause=0.03) >= 5
    assert losses(directory) == undisturbed


@pytest.mark.long
def test_a_terminated_run_saves_exits_with_75_and_goes_on_unchanged(launch, undisturbed, tmp_path):
    directory = tmp_path / "run"
    process = launch(directory, "--steps", 40, "--pause", 0.02, "--checkpoint-every", 1000)
    wait_for_step(process, directory, 10)
    process.send_signal(signal.SIGTERM)
    finish(process, directory, PREEMPTED)
    stopped = losses(directory)
    assert 10 <= len(stopped) < 40
    finish(launch(directory, "--steps", 40), directory)
    assert losses(directory) == undisturbed
    assert starts(directory) == [0, len(stopped)], "not one step was done twice"


@pytest.mark.long
def test_a_second_signal_ends_at_once_and_harms_nothing(launch, undisturbed, tmp_path):
    directory = tmp_path / "run"
    process = launch(directory, "--steps", 40, "--pause", 0.5)
    wait_for_step(process, directory, 5)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) in (PREEMPTED, 128 + signal.SIGTERM)
    finish(launch(directory, "--steps", 40), directory)
    assert losses(directory) == undisturbed


def assert_close(found, expected):
    """Equal within float32 rounding, as on another number of devices."""
    found, expected = ([struct.unpack(">f", bytes.fromhex(bits))[0] for bits in run] for run in (found, expected))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.long
def test_two_processes_train_save_and_go_on_as_two_or_one(launch, undisturbed, tmp_path):
    directory = tmp_path / "run"
    for process in launch_two(launch, directory, "--steps", 16, "--fsdp", 2):
        finish(process, directory)
    for process in launch_two(launch, directory, "--steps", 28, "--fsdp", 2, "--tensor", 2):
        finish(process, directory)
    finish(launch(directory, "--steps", 40), directory)
    assert_close(losses(directory), undisturbed)


@pytest.mark.long
def test_a_signal_to_one_of_two_processes_stops_both_at_the_same_step(launch, undisturbed, tmp_path):
    directory = tmp_path / "run"
    options = ("--steps", 40, "--pause", 0.2, "--checkpoint-every", 1000)
    first, second = launch_two(launch, directory, *options)
    wait_for_step(first, directory, 5)
    second.send_signal(signal.SIGTERM)
    for process in (first, second):
        finish(process, directory, PREEMPTED)
    stopped = len(losses(directory))
    assert 5 <= stopped < 40
    finish(launch(directory, "--steps", 40), directory)
    assert_close(losses(directory), undisturbed)
    assert starts(directory) == [0, stopped]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_two_processes_of_which_one_is_killed_at_random_end_with_the_same_losses(launch, tmp_path, seed):
    rng, options = random.Random(seed), ("--steps", 40, "--fsdp", 2, "--heartbeat", 20)
    reference, directory = tmp_path / "reference", tmp_path / "run"
    for process in launch_two(launch, reference, *options):
        finish(process, reference)
    for _ in range(3):
        before = len(lines(directory))
        both = launch_two(launch, directory, *options, "--pause", 0.1)
        wait_for_step(both[0], directory, min(before + 1, 40))
        time.sleep(rng.uniform(0, 0.5))
        both[rng.randrange(2)].kill()
        assert all(process.wait(timeout=120) is not None for process in both), "the survivor ends as well"
    for process in launch_two(launch, directory, *options):
        finish(process, directory)
    assert losses(directory) == losses(reference)
