"""The end of a run in which nothing moves: a thread in every process keeps time and tells the others.

A process counts the phases that it enters: waiting for a batch, computing, saving. All processes run one program and
enter the same ones, so the process with the lowest count is the one that the others wait for. Each posts its count,
phase and seconds in it at the coordinator; process 0 judges (`judge`):

    silent     no sign of life for `limits.heartbeat` seconds: killed, its machine gone, or stopped
    failed     an exception of its own; that of a broken connection is the fault of another one
    too long   longer in a phase than `limits.step`, or `limits.start` for the first of its kind, which compiles

The verdict is one sentence, which names the process. Every process prints it and ends with exit code 76, those that
took too long with the stacks of all their threads. Heartbeats of JAX itself do not see a program that waits for ever.
"""

import contextlib
import dataclasses
import faulthandler
import json
import math
import multiprocessing
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from nova_jax.parallel import distributed

EXIT_HUNG = os.EX_PROTOCOL  # 76: some process died or hung, and the others were ended
TICK = 0.25  # seconds between looks at the clock
LINGER = 3  # exchanges that process 0 stays for, so that all read its verdict
BROKEN = ("Gloo", "NCCL", "coordination service")  # in the error of an exchange whose other side is gone


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds after which a run in which nothing moves ends, rather than hold its machines.

    Attributes:
        join: for all processes to find each other.
        heartbeat: without a sign of life of a process.
        start: for whatever the run does for the first time, since that compiles.
        step: for a step, a wait for a batch, a checkpoint or a preview after the first.
    """

    join: int = 300
    heartbeat: int = 100
    start: float = 3600.0
    step: float = 1800.0

    def __post_init__(self) -> None:
        for name, seconds in dataclasses.asdict(self).items():
            if not seconds > 0:
                raise ValueError(f"{name} is {seconds}; it must be a number of seconds above 0")

    @property
    def interval(self) -> float:
        """Seconds between exchanges."""
        return min(0.5, self.heartbeat / 10)


class Status(NamedTuple):
    """What a process says of itself.

    Attributes:
        host: its machine.
        entered: how many phases so far.
        phase: the last of them, with the step.
        age: seconds in it without progress.
        limit: seconds allowed.
        failure: its exception; empty: none.
        is_own: the exception is its own fault.
        is_done: the run has ended here.
        beat: counts the posts, so that each differs from the one before.
    """

    host: str
    entered: int = 0
    phase: str = "starting"
    age: float = 0.0
    limit: float = math.inf
    failure: str = ""
    is_own: bool = False
    is_done: bool = False
    beat: int = 0


class Verdict(NamedTuple):
    """Why all end, and the processes whose stacks say more."""

    sentence: str
    slow: tuple[int, ...] = ()


def judge(statuses: Mapping[int, Status], silent: Mapping[int, float], count: int, heartbeat: float) -> Verdict | None:
    """Whether the run has to end, and which process is to blame.

    Args:
        statuses: by process, as far as known.
        silent: seconds since each was heard.
        count: of all processes.
        heartbeat: seconds of silence allowed.
    """
    at_work = {k: status for k, status in statuses.items() if not status.is_done}

    def name(k: int) -> str:
        return f"process {k} of {count} on {at_work[k].host}"

    behind = {k: at_work[k] for k in at_work if at_work[k].entered == min(s.entered for s in at_work.values())}
    for k, status in at_work.items():
        if status.is_own:
            return Verdict(f"{name(k)} failed in {status.phase}: {status.failure}")
        if silent[k] > heartbeat:
            return Verdict(
                f"{name(k)} gave no sign of life for {heartbeat:g} s (limits.heartbeat): it was killed, or its machine "
                f"is gone; it was last in {status.phase}"
            )
    for k, status in at_work.items():
        if status.failure and status.age > heartbeat:
            last = "".join(f"; furthest behind is {name(j)}, in {at_work[j].phase}" for j in behind if j != k)
            return Verdict(f"{name(k)} failed in {status.phase}: {status.failure}{last}")
    if behind and all(status.age > status.limit for status in behind.values()):
        first = min(behind, key=lambda k: behind[k].age)
        others = f", as all of {len(behind)} processes" if len(behind) > 1 else ""
        status = behind[first]
        field = "limits.step, or limits.start the first time"
        return Verdict(
            f"{name(first)} has not moved for {status.age:.0f} s in {status.phase}{others}, and {status.limit:g} are "
            f"allowed ({field}): its stacks are on standard error",
            tuple(behind),
        )
    return None


class Watch:
    """Watches over what the block does; in several processes all must enter and leave it together.

    An exception that leaves the block is told to the other processes. When another one's end has caused it, the block
    waits for the verdict. While a block inside runs with a watch of its own, this one only listens.

    Args:
        limits: see `Limits`.
        name: of what is done before the first phase, which may take as long as it likes.

    Attributes:
        report: gets the verdict that standard error gets, before the process ends.
    """

    def __init__(self, limits: Limits, name: str = "starting") -> None:
        self.report: Callable[[str], None] = lambda sentence: None
        self._limits = limits
        self._index, self._count = distributed.process_place()
        self._folder = f"watch/{distributed.serial('watch')}"
        self._now = Status(socket.gethostname(), phase=name)  # replaced as a whole: the thread reads it at any time
        self._moved = 0  # signs of progress
        self._entered: set[str] = set()
        self._answered = time.monotonic()  # when the coordinator last did
        unheard = json.dumps(Status("an unknown host", entered=-1))
        self._heard = dict.fromkeys(range(self._count), (unheard, 0.0))  # by process: its last post, and when it came
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._abort = distributed.before_abort(lambda: self._judge(self._lost))

    def __enter__(self) -> "Watch":
        _running.append(self)
        self._post(self._now)  # of a process that dies at once the others know at least this
        self._thread.start()
        if self._index:
            self._abort.__enter__()  # which comes before the thread has noticed that the coordinator is gone
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        _running.remove(self)
        if error is None or kind is SystemExit or self._count == 1:
            self._leave(self._now._replace(is_done=True))
            return
        failed = self._now._replace(failure=_first_line(error))
        if isinstance(error, jax.errors.JaxRuntimeError) or any(word in str(error) for word in BROKEN):
            self._now = failed
            self._stop.wait(self._limits.heartbeat + 2 * LINGER * self._limits.interval)  # for the verdict
        self._leave(failed._replace(is_own=True))
        distributed.exit_alone()

    def phase(self, name: str, step: int | None = None) -> None:
        """See `phase`."""
        limit = self._limits.step if name in self._entered else self._limits.start
        self._entered.add(name)
        text = name if step is None else f"step {step}, {name}"
        self._now = self._now._replace(entered=self._now.entered + 1, phase=text, limit=limit)
        self.progress()

    def progress(self) -> None:
        """See `progress`."""
        self._moved += 1

    def _watch(self) -> None:
        moved, age, beat, last, posted = 0, 0.0, 0, time.monotonic(), -math.inf
        while not self._stop.wait(TICK):
            now = time.monotonic()
            age += min(now - last, 2 * TICK)  # a process that was stopped, as by Ctrl-Z, did not hang
            last = now
            if moved != self._moved or (_running and _running[-1] is not self):
                moved, age = self._moved, 0.0
            if now - posted >= self._limits.interval:
                posted, beat = now, beat + 1
                self._judge(self._exchange, self._now._replace(age=age, beat=beat), now)

    def _judge(self, judging: Callable[..., Verdict | None], *arguments: Any) -> None:
        """Ends the process if there is a verdict."""
        try:
            verdict = judging(*arguments)
        except jax.errors.JaxRuntimeError as error:
            failed = self._now._replace(failure=_first_line(error), is_own=True)
            verdict = self._lost() if self._index else judge({0: failed}, {0: 0.0}, self._count, math.inf)
        if verdict:
            self._end(verdict)

    def _lost(self) -> Verdict | None:
        """The verdict when process 0 is gone or silent, and with it the coordinator."""
        if time.monotonic() - self._answered < self._limits.heartbeat and distributed.coordinator_answers():
            return None
        last = Status(*json.loads(self._heard[0][0]))
        return Verdict(
            f"process 0 of {self._count} on {last.host} does not answer: it was killed or stopped, or its machine is "
            f"gone; it was last in {last.phase}"
        )

    def _exchange(self, status: Status, now: float) -> Verdict | None:
        """Posts what this process does; the verdict of process 0, or as process 0."""
        if self._count == 1:
            return judge({0: status}, {0: 0.0}, 1, float(self._limits.heartbeat))
        self._post(status)
        found = distributed.posted(f"{self._folder}/{'head' if self._index else 'all'}")
        self._answered = time.monotonic()
        if "verdict" in found:
            sentence, slow = json.loads(found["verdict"])
            return Verdict(sentence, tuple(slow))
        for key, text in found.items():
            if text != self._heard[int(key)][0]:
                self._heard[int(key)] = (text, now)
        known = {k: Status(*json.loads(text)) for k, (text, _) in self._heard.items()}
        silent = {k: now - since if known[k].entered >= 0 else 0.0 for k, (_, since) in self._heard.items()}
        if self._index:  # process 0 judges all, and the others its silence
            known = {0: known[0]._replace(limit=math.inf)}
        return judge(known, silent, self._count, float(self._limits.heartbeat))

    def _end(self, verdict: Verdict) -> None:
        """Says the verdict, and ends the process."""
        try:
            if self._index in verdict.slow:
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
            print(f"nova: {verdict.sentence}", file=sys.__stderr__, flush=True)
            self._tell(verdict)
            self.report(verdict.sentence)
            sys.stdout.flush()
            for child in multiprocessing.active_children():
                child.kill()
            if self._index == 0 and self._count > 1:
                time.sleep(LINGER * self._limits.interval)
        except Exception:
            traceback.print_exc()  # the run ends all the same
        finally:
            os._exit(EXIT_HUNG)

    def _leave(self, last: Status) -> None:
        """Ends the thread; the others hear the last word."""
        self._stop.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 may be gone
            self._post(last)
            if last.failure:
                self._tell(judge({self._index: last}, {self._index: 0.0}, self._count, math.inf))
        if self._count > 1 and last.failure:
            time.sleep(LINGER * self._limits.interval)  # until the others have heard it
        self._thread.join(LINGER * self._limits.interval)
        if self._index:
            self._abort.__exit__(None, None, None)

    def _tell(self, verdict: Verdict | None) -> None:
        if self._index == 0 and self._count > 1:
            distributed.post(f"{self._folder}/head/verdict", json.dumps(verdict))

    def _post(self, status: Status) -> None:
        if self._count > 1:
            for folder in ("all", "head")[: 1 if self._index else 2]:  # the others read that of process 0 alone
                distributed.post(f"{self._folder}/{folder}/{self._index}", json.dumps(status))


_running: list[Watch] = []  # the innermost last


def phase(name: str, step: int | None = None) -> None:
    """Says what this process does from here on, to the innermost watch; all processes must say the same in turn."""
    if _running:
        _running[-1].phase(name, step)


def progress(*_: Any) -> None:
    """Says that the phase goes on: its time begins again."""
    if _running:
        _running[-1].progress()


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:500]}"
