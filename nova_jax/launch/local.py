"""N processes of one command on this machine, joined through the loopback address, ended together.

    NOVA_COORDINATOR=127.0.0.1:PORT  NOVA_NUM_PROCESSES=N  NOVA_PROCESS_ID=0..N-1

Process 0 has the terminal; lines of the others come to standard error behind their number. Signals are passed on to
every process. After the first failure the others have a grace period to end by themselves, as they do when one of them
was told to save and stop; then they are terminated, and killed.
"""

import contextlib
import os
import queue
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

PREEMPTED = 75  # EX_TEMPFAIL: the run has saved itself; the same command goes on with it
HUNG = 76  # EX_PROTOCOL: a process of the run died or hung, and this one has ended because of it
KILL_AFTER = 5.0  # seconds from SIGTERM to SIGKILL
SIMULATED = "--xla_force_host_platform_device_count"

Children = list[subprocess.Popen[str]]


def run(command: Sequence[str], processes: int = 2, devices: int | None = None, grace: float = 30.0) -> int:
    """Runs the command in so many processes; returns the exit code of the first that failed, or 0.

    A process that a signal ended counts as shells count it: 128 and the number of the signal.

    Args:
        command: program and arguments.
        processes: how many.
        devices: simulated CPU devices of each process; None: the devices that JAX finds.
        grace: seconds from the first failure until the others are terminated.

    Raises:
        ValueError: no command, or a number below one.
        OSError: the program cannot be started.
    """
    check(command, processes, devices)
    shared = environment(os.environ, processes, devices, free_port())
    children: Children = []
    readers = []
    with _signals_passed_on(children):
        try:
            for index in range(processes):
                children.append(_start(command, shared | {"NOVA_PROCESS_ID": str(index)}, index))
                readers.append(threading.Thread(target=_prefix_lines, args=(children[-1], index), daemon=True))
                readers[-1].start()
            return _watch(children, grace)
        finally:
            for child in children:
                if child.poll() is None:
                    os.killpg(child.pid, signal.SIGKILL)  # with what it started itself
            for reader in readers:
                reader.join(timeout=1.0)  # what still holds its pipe is none of ours


def script(command: Sequence[str], processes: int = 2, devices: int | None = None) -> str:
    """What `run` does, as a shell script to read."""
    check(command, processes, devices)
    base = {"XLA_FLAGS": "$XLA_FLAGS"} if devices else {}
    exports = [f'export {name}="{value}"' for name, value in environment(base, processes, devices, 8476).items()]
    starts = [f"NOVA_PROCESS_ID={index} {shlex.join(command)} &" for index in range(processes)]
    return "\n".join(["#!/bin/bash", *exports, *starts, "wait"]) + "\n"


def check(command: Sequence[str], processes: int, devices: int | None = None) -> None:
    """Refuses what cannot be started.

    Raises:
        ValueError: no command, or a number below one.
    """
    if not command:
        raise ValueError("there is no command to launch: give it after --, as in `-- python -m experiments.quickstart`")
    for name, number in (("processes", processes), ("devices", devices)):
        if number is not None and number < 1:
            raise ValueError(f"--{name} must be at least 1, got {number}")


def environment(base: Mapping[str, str], processes: int, devices: int | None, port: int) -> dict[str, str]:
    """The environment that all processes share, from that of the launcher."""
    settings = dict(base)
    if devices is not None:
        settings["XLA_FLAGS"] = f"{base.get('XLA_FLAGS', '')} {SIMULATED}={devices}".strip()
        settings["JAX_PLATFORMS"] = "cpu"
    return settings | {"NOVA_COORDINATOR": f"127.0.0.1:{port}", "NOVA_NUM_PROCESSES": str(processes)}


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(command: Sequence[str], env: Mapping[str, str], index: int) -> subprocess.Popen[str]:
    """One process, in a session of its own: Ctrl-C reaches it once, through the launcher, and not twice."""
    if index == 0:
        return subprocess.Popen(command, env=env, start_new_session=True, text=True)
    return subprocess.Popen(
        command,
        env=env,
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )


def _prefix_lines(child: subprocess.Popen[str], index: int) -> None:
    for line in child.stdout or ():
        sys.stderr.write(f"[{index}] {line.rstrip()}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def _signals_passed_on(children: Children) -> Iterator[None]:
    """Gives every signal that would end the launcher to its children instead; a closed terminal becomes SIGTERM."""

    def pass_on(signum: int, frame: object) -> None:
        del frame
        for child in children:
            child.send_signal(signal.SIGTERM if signum == signal.SIGHUP else signum)  # no-op once it has ended

    numbers = [signal.SIGINT, signal.SIGTERM]
    numbers += [signal.SIGHUP] if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN else []  # ignored under nohup
    before = {number: signal.signal(number, pass_on) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(children: Children, grace: float) -> int:
    """Waits for all; says which failed first, and ends the others when their time is over."""
    ended: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
    for index, child in enumerate(children):
        threading.Thread(target=lambda i=index, c=child: ended.put((i, c.wait())), daemon=True).start()
    left, first = len(children), 0
    deadline: float | None = None
    measures = [(grace, signal.SIGTERM), (KILL_AFTER, signal.SIGKILL)]
    while left:
        try:
            index, code = ended.get(timeout=None if deadline is None else max(deadline - time.monotonic(), 0))
        except queue.Empty:
            _, number = measures.pop(0)
            for child in children:
                child.send_signal(number)
            deadline = time.monotonic() + measures[0][0] if measures else None
            continue
        left -= 1
        if code and not first:
            first = code if code > 0 else 128 - code
            deadline = time.monotonic() + grace
            sys.stderr.write(f"nova: process {index} of {len(children)} {_ending(code)}\n")
            sys.stderr.flush()
    return first


def _ending(code: int) -> str:
    """How a process ended, for a sentence that begins with it."""
    if code == PREEMPTED:
        return f"ended with exit code {code}: the run is saved, and the same command goes on with it"
    if code == HUNG:
        return f"ended with exit code {code}: a process died or hung, which it names above"
    how = f"with exit code {code}" if code > 0 else f"by {signal.Signals(-code).name}"
    return f"was the first to fail, {how}; the others are ended"
