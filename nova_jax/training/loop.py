"""The training loop: it knows a `TrainStep`, a stream of batches, and nothing of models or losses.

Per step: dispatch it, then read the metrics of the step before (the devices already work on the next one), stop if they
are not finite, save and call back when due, stop on a signal. A `watch` around it hears of each of these phases.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nova_jax.parallel import distributed
from nova_jax.training import goodput, profiling, watch
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
    """How long to train and how often to log and save, in steps. The last step is always logged and saved.

    A train step may be several, `steps_per_dispatch`: it takes their batches stacked, and gives their metrics stacked.
    What is due at one of them then comes after the last. `profile`, "START:STOP", asks for a trace of these steps; see
    `training.profiling`.
    """

    steps: int
    batch_size: int
    log_every: int = 50
    checkpoint_every: int = 1000
    steps_per_dispatch: int = 1
    profile: str | None = None

    def __post_init__(self) -> None:
        numbers = (self.steps, self.batch_size, self.log_every, self.checkpoint_every, self.steps_per_dispatch)
        if min(numbers) < 1:
            raise ValueError(f"{self}: all numbers must be at least 1")

    def is_due(self, step: int, every: int) -> bool:
        """Whether something that comes every so many steps comes after the dispatch that ends with this step."""
        return step >= self.steps or step // every > (step - self.steps_per_dispatch) // every


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
        ValueError: the steps of a dispatch do not divide those that are left.
        SystemExit: stopped by a signal; code 75.
    """
    first, stride = int(state.step), loop.steps_per_dispatch
    if (loop.steps - first) % stride:
        raise ValueError(f"steps_per_dispatch={stride} must divide the {loop.steps - first} steps that are left")
    stream, reports = batches(position), _Reports(loop, checkpoints, log)
    profile = profiling.Trace(loop.profile, checkpoints.directory.parent / "profile")

    def enter(activity: goodput.Activity, text: str, step: int | None = None) -> None:
        watch.phase(text, step)
        log.clock.enter(activity)

    with distributed.graceful_stop() as should_stop, profile:
        for step in range(first + stride, loop.steps + 1, stride):
            enter("input_wait", "waiting for a batch", step)
            batch = next(stream, None)
            if batch is None:
                raise RuntimeError(f"the data ended before step {step} of {loop.steps}, after {position} samples")
            enter("step", "computing", step)
            with profile.step(step):
                state, metrics = train_step(state, batch)
            reports.put(step, metrics)
            profile.end(step, reports.settle)
            position += loop.batch_size * stride
            is_last, stops = step == loop.steps, should_stop(step)
            due = [callback for callback in callbacks if loop.is_due(step, callback.every)]
            saves = stops or loop.is_due(step, loop.checkpoint_every)
            if due or saves:
                reports.settle()  # the log is never behind a checkpoint
            if saves:
                enter("checkpoint", "saving a checkpoint", step)
                checkpoints.save(step, state, {"position": position})
            for number, callback in enumerate(due, 1):
                enter("callback", f"callback {number} of {len(due)}", step)
                callback.run(step, state)
            if stops and not is_last:
                enter("checkpoint", "finishing a checkpoint", step)
                checkpoints.wait()
                log.event(f"stopped by a signal and saved step {step}; the same command continues", step=step)
                raise SystemExit(EXIT_PREEMPTED)
        enter("checkpoint", "finishing the last checkpoint")
        checkpoints.wait()
    return state


class _Reports:
    """Reads metrics one step late, so that the devices never wait for the host."""

    def __init__(self, loop: Loop, checkpoints: Checkpoints, log: RunLog) -> None:
        self._loop, self._checkpoints, self._log = loop, checkpoints, log
        self._unread: tuple[int, Metrics] | None = None

    def put(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step just dispatched; reads those of the step before."""
        self.settle()
        self._unread = (step, metrics)

    def settle(self) -> None:
        """Reads what is unread: waits for that step, checks its loss, logs it when due."""
        if self._unread is None:
            return
        (last, metrics), self._unread = self._unread, None
        losses = np.atleast_1d(jax.device_get(metrics["loss"]))
        is_good = np.isfinite(losses) & np.atleast_1d(np.asarray(metrics.get("finite", True)))
        if not is_good.all():
            failed = int(np.argmin(is_good))
            step, loss = last - len(losses) + 1 + failed, float(losses[failed])
            self._checkpoints.wait()
            steps = self._checkpoints.steps()
            good = f"the last good checkpoint is step {steps[-1]}" if steps else "no checkpoint was saved before"
            raise NonFiniteLoss(
                f"step {step}: loss {loss} or its gradient is not finite; {good} in {self._checkpoints.directory}. "
                "Training goes on from there with a lower learning rate or norm to clip gradients to (optimizer.peak, "
                "optimizer.clip_norm).",
                self._checkpoints.directory,
            )
        if self._loop.is_due(last, self._loop.log_every):
            stacked = self._loop.steps_per_dispatch > 1
            shown = {name: value[-1] if stacked else value for name, value in metrics.items() if name != "finite"}
            self._log.step(last, shown)
