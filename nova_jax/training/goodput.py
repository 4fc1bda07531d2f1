"""Where the seconds of a run go: each of them belongs to one activity.

    start        from the first line of the program to the first batch: encoding, reading, making or restoring the state
    compile      tracing and compilation, in whatever activity they happen
    input_wait   waiting for the next batch
    step         training
    checkpoint   what saving does not do in the background
    callback     previews, and other callbacks
    lost         steps of an earlier start that were not saved, and are trained again

    goodput = step / (all of them together)

log.jsonl has the seconds since the line before, events.jsonl those after the last line and those lost. What a killed
process did after its last line is nowhere.
"""

import collections
import threading
import time
import weakref
from typing import Any, Literal, get_args

import jax

Activity = Literal["start", "compile", "input_wait", "step", "checkpoint", "callback", "lost"]
ACTIVITIES: tuple[Activity, ...] = get_args(Activity)
COMPILATION = "/jax/core/compile/"  # events of JAX: tracing, lowering, compilation


class Clock:
    """Gives the seconds of the thread that made it to activities, from the moment when it is made."""

    def __init__(self) -> None:
        self._activity: Activity = "start"
        self._since = time.perf_counter()
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._compiled: list[tuple[float, float]] = []  # intervals since then, one after the other
        self._thread = threading.get_ident()
        _clocks.add(self)

    def enter(self, activity: Activity) -> None:
        """Says what the time is spent on from here on."""
        self._settle()
        self._activity = activity

    def take(self) -> dict[str, float]:
        """Seconds of each activity since the last call; their sum is the time since then."""
        self._settle()
        taken = {activity: self._seconds[activity] for activity in ACTIVITIES if activity in self._seconds}
        self._seconds.clear()
        return taken

    def compiled(self, seconds: float) -> None:
        """Books the seconds that have just been spent on compilation, which may contain others booked before."""
        if threading.get_ident() != self._thread:
            return
        end = time.perf_counter()
        begin = max(end - seconds, self._since)
        while self._compiled and self._compiled[-1][0] >= begin:
            self._compiled.pop()
        self._compiled.append((begin, end))

    def _settle(self) -> None:
        now = time.perf_counter()
        compiling = sum(end - begin for begin, end in self._compiled)
        if compiling:
            self._seconds["compile"] += compiling
        self._seconds[self._activity] += now - self._since - compiling
        self._since = now
        self._compiled.clear()


_clocks: weakref.WeakSet[Clock] = weakref.WeakSet()  # they hear of compilation


def _on_event(event: str, duration_secs: float, **_: Any) -> None:
    if event.startswith(COMPILATION):
        for clock in _clocks:
            clock.compiled(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_on_event)
