"""Several processes of a command on this machine: their places, their signals, and which of them failed."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from nova_jax.launch import local

ROOT = pathlib.Path(__file__).parents[2]
ODD = ["a b", "it's", '"quoted"', "$HOME", "$(date)", "`date`", "\\", "*", "", "é", "two\nlines", "--x_y=1", "--"]
REPORT = """
import json, os, sys
names = "NOVA_COORDINATOR", "NOVA_NUM_PROCESSES", "NOVA_PROCESS_ID", "XLA_FLAGS", "JAX_PLATFORMS"
found = {"argv": sys.argv[1:], **{name: os.environ.get(name) for name in names}}
open(os.environ["NOVA_PROCESS_ID"] + ".json", "w").write(json.dumps(found))
print("process", os.environ["NOVA_PROCESS_ID"])
"""


def python(program, *arguments):
    return [sys.executable, "-c", program, *arguments]


def by_number(*programs):
    """One program for each process."""
    return python(f"import os, signal, sys, time; exec({programs!r}[int(os.environ['NOVA_PROCESS_ID'])])")


def test_every_process_learns_its_place_and_gets_the_arguments_as_they_are(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XLA_FLAGS", "--xla_one=1")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert local.run(python(REPORT, *ODD), processes=3, devices=4) == 0
    found = [json.loads(pathlib.Path(f"{index}.json").read_text()) for index in range(3)]
    assert [report["argv"] for report in found] == [ODD] * 3
    assert [report["NOVA_PROCESS_ID"] for report in found] == ["0", "1", "2"]
    assert {report["NOVA_NUM_PROCESSES"] for report in found} == {"3"}
    (address,) = {report["NOVA_COORDINATOR"] for report in found}
    assert address.startswith("127.0.0.1:")
    assert {report["XLA_FLAGS"] for report in found} == {"--xla_one=1 --xla_force_host_platform_device_count=4"}
    assert {report["JAX_PLATFORMS"] for report in found} == {"cpu"}
    out, err = capfd.readouterr()
    assert out == "process 0\n"
    assert sorted(err.splitlines()) == ["[1] process 1", "[2] process 2"]


def test_without_simulated_devices_the_platform_stays_as_it_is():
    base = {"XLA_FLAGS": "--xla_one=1"}
    assert local.environment(base, 2, None, 1).items() >= base.items()
    assert "JAX_PLATFORMS" not in local.environment(base, 2, None, 1)


@pytest.mark.parametrize(
    ("ending", "code", "words"),
    [
        ("sys.exit(3)", 3, "exit code 3"),
        ("sys.exit(75)", 75, "exit code 75: the run is saved"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "SIGKILL"),
    ],
)
def test_the_first_failure_is_named_and_its_exit_code_returned(capfd, ending, code, words):
    assert local.run(by_number("time.sleep(600)", ending), grace=0.0) == code
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("nova: process 1 of 2 ")
    assert words in line


def test_a_process_that_ignores_the_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "KILL_AFTER", 0.0)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); open('deaf', 'w').close(); time.sleep(600)"
    fails = "while not os.path.exists('deaf'): time.sleep(0.01)\nsys.exit(3)"
    assert local.run(by_number(deaf, fails), grace=0.0) == 3


def test_processes_that_end_well_may_do_so_at_different_times():
    assert local.run(by_number("time.sleep(0.2)", "pass"), grace=0.0) == 0


SAVES = """
import os, signal, sys, time
index = os.environ["NOVA_PROCESS_ID"]
def save(number, frame):
    open("saved" + index, "a").write("x")
    time.sleep(0.1)
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.signal(signal.SIGINT, save)
open("ready" + index, "w").close()
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_every_process_once_and_is_waited_for(tmp_path, number):
    program = "import sys; from nova_jax.launch import local; sys.exit(local.run(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    launcher = subprocess.Popen(
        python(program, *python(SAVES)),
        cwd=tmp_path,
        env=env,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # tests may run under nohup
    )
    while launcher.poll() is None and not all((tmp_path / f"ready{index}").exists() for index in range(2)):
        time.sleep(0.01)
    os.killpg(launcher.pid, number)  # as a terminal does
    assert launcher.wait(timeout=60) == 75
    assert [(tmp_path / f"saved{index}").read_text() for index in range(2)] == ["x", "x"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"command": []}, "no command to launch"),
        ({"command": ["x"], "processes": 0}, "--processes must be at least 1, got 0"),
        ({"command": ["x"], "devices": 0}, "--devices must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_started_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        local.run(**arguments)


def test_a_program_that_does_not_exist_is_named():
    with pytest.raises(OSError, match="no_such_program"):
        local.run(["no_such_program"])


def test_the_script_starts_the_same_processes(tmp_path):
    done = subprocess.run(["bash", "-c", local.script(python(REPORT, *ODD), 2, 4)], cwd=tmp_path, check=True, text=True)
    assert done.returncode == 0
    found = [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)]
    assert [report["argv"] for report in found] == [ODD] * 2
    assert [report["NOVA_PROCESS_ID"] for report in found] == ["0", "1"]
    assert found[0]["JAX_PLATFORMS"] == "cpu"
