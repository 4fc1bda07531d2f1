"""Who is to blame when a run stands still, and how it ends: as judged, and by real processes that hang, fail or die."""

import math
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from nova_jax.training import watch
from nova_jax.training.watch import Status

ROOT = pathlib.Path(__file__).parents[2]
WATCHED = pathlib.Path(__file__).with_name("watched.py")
HOST = socket.gethostname()


def judge(*statuses, silent=None, heartbeat=10.0):
    numbered = dict(enumerate(statuses))
    return watch.judge(numbered, dict.fromkeys(numbered, 0.0) | (silent or {}), len(statuses), heartbeat)


def at(count, age=0.0, limit=5.0, host="a", phase="step 3, computing", **state):
    return Status(host, count, phase, float(age), limit, **state)


def test_a_run_that_moves_is_left_alone():
    assert judge(at(4, 1), at(5, 4)) is None
    assert judge(at(4, 4.9), at(9, 100)) is None, "the one behind has time left, and the others wait for it"
    assert judge(at(4, 4.9), at(4, 100)) is None, "one of those behind still moves"
    assert judge(at(4, 1000, limit=math.inf)) is None
    assert judge(at(4, 1000, is_done=True), at(4, 4)) is None
    assert judge(at(4, is_done=True), silent={0: 99.0}) is None


def test_of_those_that_wait_the_one_behind_is_named_with_what_it_does():
    verdict = judge(at(9, 100), at(7, 6, host="b", phase="step 3, waiting for a batch"), at(9, 100))
    assert verdict.sentence.startswith(
        "process 1 of 3 on b has not moved for 6 s in step 3, waiting for a batch, and 5 are allowed (limits.step"
    )
    assert verdict.slow == (1,)


def test_where_all_stand_at_the_same_place_the_sentence_says_so():
    verdict = judge(at(9, 8), at(9, 7, host="b"))
    assert verdict.sentence.startswith("process 1 of 2 on b has not moved for 7 s in step 3, computing, as all of 2")
    assert verdict.slow == (0, 1)


def test_a_silent_process_is_named_with_what_it_was_last_in():
    verdict = judge(at(9, 1), at(8, 1, host="b"), silent={1: 10.5})
    assert verdict.sentence.startswith("process 1 of 2 on b gave no sign of life for 10 s (limits.heartbeat)")
    assert verdict.sentence.endswith("it was last in step 3, computing")


def test_a_process_that_failed_by_itself_is_named_at_once_and_one_that_lost_another_only_after_a_heartbeat():
    lost = at(7, 1, failure="ValueError: Gloo")
    assert judge(lost, at(9, 1)) is None
    assert judge(lost, at(9, 1, host="b"), silent={1: 11.0}).sentence.startswith("process 1 of 2 on b gave no sign")
    assert judge(lost._replace(age=11), at(9, 1)).sentence == (
        "process 0 of 2 on a failed in step 3, computing: ValueError: Gloo"
    )
    failed = judge(lost, at(9, 1, host="b", failure="ValueError: no", is_own=True))
    assert failed.sentence == "process 1 of 2 on b failed in step 3, computing: ValueError: no"


@pytest.mark.parametrize("name", ["join", "heartbeat", "start", "step"])
def test_a_limit_is_a_number_above_zero(name):
    with pytest.raises(ValueError, match=rf"^{name} is 0\S*; it must be a number of seconds above 0"):
        watch.Limits(**{name: type(getattr(watch.Limits(), name))(0)})


def test_outside_of_a_watch_phases_say_nothing():
    watch.phase("computing", 1)
    watch.progress()


def start(program, heartbeat=60, step=60.0):
    """One process for each word."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    count = len(program.split(","))
    places = {"NOVA_COORDINATOR": address, "NOVA_NUM_PROCESSES": str(count)} if count > 1 else {}
    return [
        subprocess.Popen(
            [sys.executable, str(WATCHED), str(heartbeat), str(step), program],
            env=os.environ | {"PYTHONPATH": str(ROOT)} | places | ({"NOVA_PROCESS_ID": str(k)} if places else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for k in range(count)
    ]


def wait_for(process, word):
    assert any(line == f"{word}\n" for line in process.stdout), process.stderr.read()


def ends(processes, seconds):
    """Exit codes and standard error of all, which end within so many seconds."""
    end = time.monotonic() + seconds
    try:
        errors = [process.communicate(timeout=max(0.1, end - time.monotonic()))[1] for process in processes]
        return [process.returncode for process in processes], errors
    finally:
        for process in processes:
            process.kill()


def sentences(error):
    return [line for line in error.splitlines() if line.startswith("nova: ")]


def test_a_process_alone_that_hangs_ends_with_its_stacks():
    (process,) = start("hangs", step=1.0)
    wait_for(process, "at work")
    (code,), (error,) = ends([process], 1 + 5)
    assert code == watch.EXIT_HUNG == 76
    (sentence,) = sentences(error)
    assert f"process 0 of 1 on {HOST} has not moved for 1 s in step 3, waiting for a batch, and 1 are" in sentence
    assert f'{WATCHED.name}", line' in error


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_hangs_ends_all_within_the_limit_and_is_the_one_named(index):
    processes = start(",".join("hangs" if k == index else "works" for k in range(2)), step=2.0)
    for process in processes:
        wait_for(process, "at work")
    codes, errors = ends(processes, 2 + 5)
    assert codes == [76, 76]
    for k, error in enumerate(errors):
        (sentence,) = sentences(error)
        assert f"process {index} of 2 on {HOST} has not moved for 2 s in step 3, waiting for a batch" in sentence
        assert (f'{WATCHED.name}", line' in error) == (k == index)


@pytest.mark.long
@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_fails_ends_all_and_is_the_one_named(index):
    processes = start(",".join("fails" if k == index else "works" for k in range(2)))
    for process in processes:
        wait_for(process, "at work")
    codes, errors = ends(processes, 15)
    assert [codes[index], codes[1 - index]] == [1, 76]
    assert errors[index].count("ValueError: the data is not good") == 1
    (sentence,) = sentences(errors[1 - index])
    assert sentence.endswith(
        f"process {index} of 2 on {HOST} failed in step 3, waiting for a batch: ValueError: the data is not good"
    )


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_is_stopped_ends_the_others_within_a_heartbeat(number):
    processes = start("works,hangs,works", heartbeat=4)
    for process in processes:
        wait_for(process, "at work")
    time.sleep(2)  # until it has posted what it does
    processes[1].send_signal(number)
    codes, errors = ends([processes[0], processes[2]], 4 + 5)
    processes[1].kill()
    assert codes == [76, 76]
    for error in errors:
        (sentence,) = sentences(error)
        assert f"process 1 of 3 on {HOST} gave no sign of life for 4 s (limits.heartbeat)" in sentence
        assert sentence.endswith("it was last in step 3, waiting for a batch")


@pytest.mark.long
def test_without_process_0_and_its_coordinator_the_others_end_at_once_and_name_it():
    processes = start("hangs,works")
    for process in processes:
        wait_for(process, "at work")
    time.sleep(3)
    processes[0].kill()
    (code,), (error,) = ends(processes[1:], 5 + 5)
    assert code == 76
    (sentence,) = sentences(error)
    assert f"process 0 of 2 on {HOST} does not answer: it was killed or stopped" in sentence
    assert sentence.endswith("it was last in step 3, waiting for a batch")


@pytest.mark.long
def test_processes_that_end_well_are_not_disturbed():
    codes, errors = ends(start("works,works", heartbeat=10, step=20.0), 300)
    assert codes == [0, 0]
    assert [sentences(error) for error in errors] == [[], []]
