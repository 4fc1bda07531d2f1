"""The training loop: it knows a `TrainStep`, a stream of batches, and nothing of models or losses.

Per step: dispatch it, then read the metrics of the step before (the devices already work on the next one), stop if they
are not finite, save and call back when due, stop on a signal. A `watch` around it hears of each of these phases.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nova_jax.parallel import distributed
from nova_jax.training import watch
from nova_jax.training.checkpoint import Checkpoints
from nova_jax.training.logging import RunLog
from nova_jax.types import Metrics, TrainState, TrainStep

EXIT_PREEMPTED = os.EX_TEMPFAIL  # 75: saved and stopped on a signal; run the same command again


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient became infinite or NaN; the message names the step and the last good checkpoint.

    Attributes:
        directory: where the checkpoints of the run are.
    """

    def __init__(self, message: str, directory: pathlib.Path) -> None:
        super().__init__(message)
        self.directory = directory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loop:
    """How long to train and how often to log and save, in steps. The last step is always logged and saved."""

    steps: int
    batch_size: int
    log_every: int = 50
    checkpoint_every: int = 1000

    def __post_init__(self) -> None:
        if min(dataclasses.astuple(self)) < 1:
            raise ValueError(f"{self}: all four must be at least 1")


class Callback(NamedTuple):
    """Something to do every so many steps and after the last one, such as drawing samples."""

    every: int
    run: Callable[[int, TrainState], None]


def fit(
    state: TrainState,
    train_step: TrainStep,
    batches: Callable[[int], Iterator[Any]],
    *,
    loop: Loop,
    checkpoints: Checkpoints,
    log: RunLog,
    position: int = 0,
    callbacks: Sequence[Callback] = (),
) -> TrainState:
    """Trains from `state.step` to `loop.steps` and returns the last state, which is on disk as well.

    Run it inside `jax.set_mesh(mesh)` when there is a mesh. SIGTERM or Ctrl-C saves and raises SystemExit(75); a second
    one ends the process at once.

    Args:
        state: donated to the first step.
        train_step: (state, batch) -> (state, metrics); metrics hold `loss`.
        batches: start position, in samples, -> iterator of device-ready batches.
        loop: see `Loop`.
        checkpoints: saved with the metadata `position`.
        log: see `RunLog`.
        position: samples consumed so far: `restored.metadata["position"]`.
        callbacks: see `Callback`.

    Raises:
        NonFiniteLoss: the loss of a step is not finite.
        RuntimeError: the stream of batches ended early.
        SystemExit: stopped by a signal; code 75.
    """
    first, stream, reports = int(state.step), batches(position), _Reports(loop, checkpoints, log)
    with distributed.graceful_stop() as should_stop:
        for step in range(first + 1, loop.steps + 1):
            watch.phase("waiting for a batch", step)
            batch = reports.timed(lambda: next(stream, None))
            if batch is None:
                raise RuntimeError(f"the data ended before step {step} of {loop.steps}, after {position} samples")
            watch.phase("computing", step)
            state, metrics = train_step(state, batch)
            reports.put(step, metrics)
            position += loop.batch_size
            is_last, stops = step == loop.steps, should_stop(step)
            due = [callback for callback in callbacks if is_last or step % callback.every == 0]
            saves = is_last or stops or step % loop.checkpoint_every == 0
            if due or saves:
                reports.settle()  # the log is never behind a checkpoint
            if saves:
                watch.phase("saving a checkpoint", step)
                checkpoints.save(step, state, {"position": position})
            for number, callback in enumerate(due, 1):
                watch.phase(f"callback {number} of {len(due)}", step)
                callback.run(step, state)
            if stops and not is_last:
                watch.phase("finishing a checkpoint", step)
                checkpoints.wait()
                log.event(f"stopped by a signal and saved step {step}; the same command continues", step=step)
                raise SystemExit(EXIT_PREEMPTED)
        watch.phase("finishing the last checkpoint")
        checkpoints.wait()
    return state


class _Reports:
    """Reads metrics one step late, so that the devices never wait for the host."""

    def __init__(self, loop: Loop, checkpoints: Checkpoints, log: RunLog) -> None:
        self._loop, self._checkpoints, self._log = loop, checkpoints, log
        self._unread: tuple[int, Metrics] | None = None
        self._waited = 0.0  # seconds for data since the last line

    def timed(self, get: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = get()
        self._waited += time.perf_counter() - began
        return result

    def put(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step just dispatched; reads those of the step before."""
        self.settle()
        self._unread = (step, metrics)

    def settle(self) -> None:
        """Reads what is unread: waits for that step, checks its loss, logs it when due."""
        if self._unread is None:
            return
        (step, metrics), self._unread = self._unread, None
        loss = float(jax.device_get(metrics["loss"]))
        if not (np.isfinite(loss) and metrics.get("finite", True)):
            self._checkpoints.wait()
            steps = self._checkpoints.steps()
            good = f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint was saved before"
            raise NonFiniteLoss(
                f"step {step}: loss {loss} or its gradient is not finite; {good} in {self._checkpoints.directory}. "
                "Training goes on from there with a lower learning rate or norm to clip gradients to (optimizer.peak, "
                "optimizer.clip_norm).",
                self._checkpoints.directory,
            )
        if step % self._loop.log_every == 0 or step == self._loop.steps:
            shown = {name: value for name, value in metrics.items() if name != "finite"}
            self._log.step(step, shown, data_wait=self._waited)
            self._waited = 0.0
