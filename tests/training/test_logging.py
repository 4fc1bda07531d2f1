"""Each step once, whatever happened; speeds from the declared costs."""

import io
import json
import math
import struct

import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from nova_jax.training import logging


def open_log(directory, **options):
    console = rich.console.Console(file=io.StringIO(), force_terminal=options.pop("terminal", False), width=100)
    options = {"total_steps": 10} | options
    return logging.RunLog(directory, options.pop("throughput", logging.Throughput(8)), console=console, **options)


def lines(directory, name="log.jsonl"):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(logging.time, "perf_counter", lambda: now[0])
    return now


def test_the_loss_is_logged_to_the_bit(tmp_path):
    loss = np.float32(0.1) + np.float32(1e-8)
    with open_log(tmp_path) as log:
        log.step(1, {"loss": jnp.asarray(loss)})
    (line,) = lines(tmp_path)
    assert struct.unpack(">f", bytes.fromhex(line["loss_bits"]))[0] == loss == np.float32(line["loss"])


def test_speeds_follow_from_the_declared_costs(tmp_path, clock):
    cost = logging.Throughput(batch_size=8, flops_per_step=3e12, peak_flops=10e12)
    with open_log(tmp_path, throughput=cost) as log:
        log.step(1, {"loss": 1.0})
        log.clock.enter("input_wait")
        clock[0] += 1.0
        log.clock.enter("step")
        clock[0] += 3.0
        log.step(3, {"loss": 1.0})
    first, second = lines(tmp_path)
    assert "images_per_s" not in first, "the first step is mostly compilation"
    assert (second["images_per_s"], second["tflops"], second["mfu"], second["data_wait"]) == (4.0, 1.5, 0.15, 0.25)


def test_small_arrays_are_lists_and_what_is_not_finite_is_null(tmp_path):
    with open_log(tmp_path) as log:
        log.step(1, {"loss": math.nan, "loss_by_time": jnp.array([1.0, math.inf])})
    (line,) = lines(tmp_path)
    assert line["loss"] is None
    assert line["loss_bits"] == "7fc00000"
    assert line["loss_by_time"] == [1.0, None]


def test_a_resumed_log_has_each_step_once(tmp_path):
    with open_log(tmp_path) as log:
        for step in range(1, 8):
            log.step(step, {"loss": float(step)})
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 8, "lo')  # torn by a kill
    with open_log(tmp_path, start_step=5) as log:
        for step in range(6, 11):
            log.step(step, {"loss": float(step)})
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 11))


def test_a_run_that_starts_anew_starts_its_log_anew(tmp_path):
    with open_log(tmp_path) as log:
        log.step(1, {"loss": 1.0})
    with open_log(tmp_path):
        pass
    assert lines(tmp_path) == []


def test_events_are_kept_over_interruptions(tmp_path):
    for text in ("started", "resumed"):
        with open_log(tmp_path, start_step=3) as log:
            log.event(text, step=3)
    found = [(line["event"], line.get("step")) for line in lines(tmp_path, "events.jsonl")]
    assert found == [("started", 3), ("ended", None), ("resumed", 3), ("ended", None)]


def test_plain_output_is_one_line_now_and_then_and_the_last(tmp_path, clock):
    log = open_log(tmp_path)
    with log:
        for step in range(1, 11):
            log.step(step, {"loss": 0.5})
    text = log._console.file.getvalue()
    assert text == "step 1/10  loss 0.5\nstep 10/10  loss 0.5\n"


def test_a_terminal_gets_a_progress_bar(tmp_path):
    log = open_log(tmp_path, terminal=True)
    with log:
        log.step(7, {"loss": 0.5})
    assert "7/10" in log._console.file.getvalue()


def test_a_long_step_before_training_says_how_far_it_is_and_a_short_one_nothing(clock):
    console = rich.console.Console(file=io.StringIO(), width=100)
    progress = logging.Progress("encoded", console)
    for done in (10, 20):
        clock[0] += 1.0
        progress(done, 20)
    assert not console.file.getvalue()
    for done in (10, 20, 40, 80):
        clock[0] += 8.0
        progress(done, 80)
    assert console.file.getvalue().splitlines() == [
        "encoded 20/80  1.25 samples/s  48 s left",
        "encoded 80/80  2.5 samples/s  32 s",
    ]
