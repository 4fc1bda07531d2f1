"""All output of a training run, from the main process only.

    log.jsonl       one line per logged step, each step once however often the run was interrupted
    events.jsonl    what happened, in order: started, resumed, checkpoint set aside, stopped
    trackers        the same scalars, on request, for TensorBoard, Weights & Biases or trackio (`training.tracking`)
    stderr          a progress bar on a terminal or in a notebook, plain lines elsewhere

A line of log.jsonl holds the metrics of its step and, over the steps since the line before,

    images_per_s    samples a second
    tflops          10^12 floating point operations a second, all devices together: flops_per_step / seconds per step
    mfu             the same over `peak_flops`, the sum of what the devices can do (Chowdhery et al. 2022, 2204.02311)
    data_wait       the part of the time spent waiting for the next batch
    seconds         of each activity (`training.goodput`); those after the last line are in an event

`loss_bits` is the float32 loss in hexadecimal: two runs are equal when these are.
"""

import datetime
import json
import math
import os
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import rich.console
import rich.progress

from nova_jax import atomic
from nova_jax.parallel import distributed
from nova_jax.training import goodput, tracking, watch

PLAIN_SECONDS = 10.0  # between plain lines


class Throughput(NamedTuple):
    """What a step costs and what the devices could do, to turn seconds into images/s, TFLOP/s and MFU."""

    batch_size: int
    flops_per_step: float | None = None
    peak_flops: float | None = None


class RunLog:
    """The log of one run.

    Args:
        directory: of the run.
        throughput: see `Throughput`.
        total_steps: where the run ends, for the progress bar.
        start_step: step of the restored state; later lines of an interrupted run are dropped, since they come again.
        trackers: names of services that get the same scalars; see `training.tracking`.
        clock: of the run, when it began before the log.
        console: where the progress goes; stderr by default.

    Attributes:
        clock: tells what the time is spent on.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        throughput: Throughput,
        *,
        total_steps: int,
        start_step: int = 0,
        trackers: Sequence[str] = (),
        clock: goodput.Clock | None = None,
        console: rich.console.Console | None = None,
    ) -> None:
        self._throughput, self._total_steps = throughput, total_steps
        self._step: int | None = None  # of the line before
        self.clock = clock or goodput.Clock()
        self._is_main = distributed.is_main()
        if not self._is_main:
            return
        self.directory = pathlib.Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        lost = keep_lines(self.directory / "log.jsonl", through=start_step)
        self._lines = (self.directory / "log.jsonl").open("a")
        self._events = (self.directory / "events.jsonl").open("a")
        self._console = console or rich.console.Console(stderr=True, soft_wrap=True, highlight=False)
        self._progress = _progress_bar(self._console)
        self._task = self._progress and self._progress.add_task("", total=total_steps, completed=start_step)
        self._trackers = [tracking.open_tracker(name, self.directory, start_step) for name in trackers]
        self._printed = -math.inf
        if lost:
            self.event(f"{lost:.0f} s of steps that were not saved are lost", seconds={"lost": round(lost, 4)})

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def step(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Writes the line of one step."""
        seconds = self.clock.take()
        rates = self._rates(step, seconds)
        if not self._is_main:
            return
        values = {name: np.asarray(value, np.float32) for name, value in jax.device_get(dict(metrics)).items()}
        scalars = {name: float(value) for name, value in values.items() if value.ndim == 0} | rates
        lists = {name: value.tolist() for name, value in values.items() if value.ndim > 0}
        line = {"step": step, **scalars, "loss_bits": _bits(values["loss"]), **lists, "seconds": _rounded(seconds)}
        _append(self._lines, line)
        for tracker in self._trackers:
            tracker.log(scalars, step)
        self._show(step, scalars)

    def event(self, text: str, **fields: Any) -> None:
        """Tells people, now and in events.jsonl."""
        if not self._is_main:
            return
        _append(self._events, _event(text, fields))
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Ends the progress bar, says where the time went, and closes the files."""
        if not self._is_main:
            return
        if self._progress:
            self._progress.stop()
        seconds = self.clock.take()
        _append(self._events, _event("ended", {"seconds": _rounded(seconds)}))
        for tracker in self._trackers:
            tracker.close()
        self._lines.close()
        self._events.close()

    def _rates(self, step: int, seconds: Mapping[str, float]) -> dict[str, float]:
        """Speeds since the line before; none for the first, whose time is mostly compilation."""
        before, self._step = self._step, step
        total = sum(seconds.values())
        if before is None or step <= before or total <= 0:
            return {}
        steps_per_s = (step - before) / total
        rates = {
            "images_per_s": self._throughput.batch_size * steps_per_s,
            "data_wait": seconds.get("input_wait", 0.0) / total,
        }
        if self._throughput.flops_per_step:
            rates["tflops"] = self._throughput.flops_per_step * steps_per_s / 1e12
            if self._throughput.peak_flops:
                rates["mfu"] = self._throughput.flops_per_step * steps_per_s / self._throughput.peak_flops
        return rates

    def _show(self, step: int, scalars: Mapping[str, float]) -> None:
        names = ("loss", "grad_norm", "images_per_s", "tflops", "mfu", "data_wait")
        text = "  ".join(f"{name} {scalars[name]:.4g}" for name in names if name in scalars)
        if self._progress and self._task is not None:
            self._progress.update(self._task, completed=step, description=text)
        elif time.monotonic() - self._printed >= PLAIN_SECONDS or step >= self._total_steps:
            self._printed = time.monotonic()
            self._console.print(f"step {step}/{self._total_steps}  {text}", markup=False)


class Progress:
    """How far a long step before training is, where a run's log says how far training is; short ones say nothing.

    Args:
        what: has been done to the samples, in a word.
        console: where it goes; stderr by default.
    """

    def __init__(self, what: str, console: rich.console.Console | None = None) -> None:
        self._what, self._console = what, console or rich.console.Console(stderr=True, soft_wrap=True, highlight=False)
        self._start = self._printed = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Says how many samples are done, how many a second, and how long the others take."""
        watch.progress()
        now, is_last = time.perf_counter(), done >= total
        is_due = now - self._printed >= PLAIN_SECONDS or (is_last and self._printed > self._start)
        if is_due and distributed.is_main():
            rate = done / (now - self._start)
            left = f"{(total - done) / rate:.0f} s left" if rate and not is_last else f"{now - self._start:.0f} s"
            self._console.print(f"{self._what} {done}/{total}  {rate:.4g} samples/s  {left}", markup=False)
            self._printed = now
        if is_last:
            self._start = self._printed = now


def add_event(directory: pathlib.Path, text: str) -> None:
    """Adds to events.jsonl of a run whose log may be closed; from the main process only."""
    if distributed.is_main():
        with (directory / "events.jsonl").open("a") as file:
            _append(file, _event(text, {}))


def keep_lines(path: pathlib.Path, *, through: int) -> float:
    """Drops the lines of later steps, and a last line torn by a crash, in one atomic rewrite; seconds they took."""
    if not path.exists():
        return 0.0
    kept, lost = [], 0.0
    for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        try:
            found = json.loads(line)
            is_kept = found["step"] <= through
        except (ValueError, KeyError, TypeError):
            continue
        if is_kept:
            kept.append(line + "\n")
        else:
            lost += sum(found.get("seconds", {}).values())
    atomic.write(path, "".join(kept))
    return lost


def _event(text: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "event": text, **fields}


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in seconds.items()}


def _bits(loss: np.ndarray) -> str:
    return f"{np.float32(loss).view(np.uint32):08x}"


def _append(file: Any, line: Mapping[str, Any]) -> None:
    file.write(json.dumps(_finite(line)) + "\n")
    file.flush()


def _finite(value: Any) -> Any:
    """JSON has no NaN: None instead."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _progress_bar(console: rich.console.Console) -> rich.progress.Progress | None:
    if not (console.is_terminal or console.is_jupyter):
        return None
    columns = (
        rich.progress.MofNCompleteColumn(),
        rich.progress.BarColumn(bar_width=20),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.description}", markup=False),
    )
    progress = rich.progress.Progress(*columns, console=console, refresh_per_second=2)
    progress.start()
    return progress
