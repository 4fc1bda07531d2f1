"""An xprof trace of some training steps, in `profile/` of the run folder: kernels, memory and gaps on a time axis.

    python -m experiments.NAME profile=100:110
    pip install xprof && xprof --logdir runs/NAME/profile

Steps of the trace carry their number. Profile some that are past compilation; a trace of ten is large enough.
"""

import pathlib
from collections.abc import Callable

import jax


def parse(text: str) -> tuple[int, int]:
    """First and last step of "START:STOP".

    Raises:
        ValueError: it is no such range.
    """
    first, colon, last = text.partition(":")
    if not (colon and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(
            f"profile is {text!r}; it must be START:STOP, the first and the last step of a trace, as in 100:110"
        )
    return int(first), int(last)


class Trace:
    """Traces the steps of "START:STOP"; None: no steps. Leaving the block ends a trace that is still open."""

    def __init__(self, steps: str | None, directory: pathlib.Path) -> None:
        self._steps = None if steps is None else parse(steps)
        self._directory, self._is_open = directory, False

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._is_open:
            jax.profiler.stop_trace()

    def step(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """Goes around the dispatch that ends with a step, and opens the trace before the first that is asked for."""
        if self._steps and not self._is_open and self._steps[0] <= step <= self._steps[1]:
            jax.profiler.start_trace(self._directory)
            self._is_open = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def end(self, step: int, wait: Callable[[], None]) -> None:
        """Closes the trace after its last step; `wait` returns when the devices have done it."""
        if self._is_open and self._steps and step >= self._steps[1]:
            wait()
            jax.profiler.stop_trace()
            self._is_open = False
