"""Every second of a run belongs to one activity."""

import time

import jax
import jax.numpy as jnp
import pytest

from nova_jax.runs import record
from nova_jax.training import goodput, loop
from tests.training.test_logging import lines, open_log
from tests.training.test_loop import STATE, counting_step, numbers, run


@pytest.fixture
def now(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(goodput.time, "perf_counter", lambda: now[0])
    return now


def test_the_time_belongs_to_the_activity_entered_last(now):
    clock = goodput.Clock()
    for activity, seconds in (("input_wait", 1.0), ("step", 2.0), ("checkpoint", 4.0), ("step", 8.0)):
        clock.enter(activity)
        now[0] += seconds
    assert clock.take() == {"start": 0.0, "input_wait": 1.0, "step": 10.0, "checkpoint": 4.0}
    now[0] += 16.0
    assert clock.take() == {"step": 16.0}


def test_compilation_is_taken_from_its_activity_and_counts_once(now):
    clock = goodput.Clock()
    clock.enter("step")
    now[0] += 2.0
    clock.compiled(0.5)  # the trace of a function that the next one calls
    now[0] += 1.0
    clock.compiled(2.0)
    now[0] += 1.0
    clock.compiled(0.25)
    now[0] += 1.0
    assert clock.take() == {"start": 0.0, "compile": 2.25, "step": 2.75}


def test_jax_says_when_it_compiles():
    clock = goodput.Clock()
    began = time.perf_counter()
    jax.jit(lambda x: jnp.sin(x) * time.perf_counter())(jnp.ones(()))  # a constant that no cache knows
    seconds, wall = clock.take(), time.perf_counter() - began
    assert 0.0 < seconds["compile"] < wall
    assert sum(seconds.values()) == pytest.approx(wall, abs=0.01)


def test_the_parts_of_a_run_sum_to_its_time(tmp_path):
    def slow(position):
        for batch in numbers(position):
            time.sleep(0.02)
            yield batch

    began = time.perf_counter()
    preview = loop.Callback(every=4, run=lambda step, state: time.sleep(0.05))
    run(tmp_path, steps=8, batches=slow, callbacks=[preview], checkpoint_every=4)
    wall = time.perf_counter() - began
    seconds = record.activity_seconds(tmp_path)
    assert sum(seconds.values()) == pytest.approx(wall, rel=0.01)
    assert seconds["input_wait"] >= 0.16
    assert seconds["callback"] >= 0.1
    assert seconds["checkpoint"] > 0
    assert seconds["step"] > 0


def test_steps_that_are_trained_again_are_lost(tmp_path, now):
    with open_log(tmp_path) as log:
        for step in (1, 2, 3):
            now[0] += 1.0
            log.step(step, {"loss": 1.0})
    with open_log(tmp_path, start_step=1):
        pass
    assert record.activity_seconds(tmp_path) == {"start": 1.0, "lost": 2.0}
    assert any("2 s of steps" in line["event"] for line in lines(tmp_path, "events.jsonl"))


def test_a_run_of_an_earlier_version_has_no_seconds(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    assert record.activity_seconds(tmp_path) == {}


def test_a_trace_holds_the_steps_asked_for(tmp_path):
    run(tmp_path, steps=6, profile="3:4", state=STATE, train_step=jax.jit(counting_step))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_trace_of_steps_that_never_come_writes_nothing(tmp_path):
    run(tmp_path, steps=3, profile="5:9")
    assert not (tmp_path / "profile").exists()


def test_a_run_that_stops_inside_its_trace_closes_it(tmp_path):
    for folder in ("first", "second"):  # a trace left open would make the next one fail
        run(tmp_path / folder, steps=3, profile="2:9")
        assert list((tmp_path / folder / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize("text", ["5", "5:", "0:3", "7:3", "a:b", "1:2:3"])
def test_a_range_of_steps_that_is_none_is_refused(tmp_path, text):
    with pytest.raises(ValueError, match="START:STOP"):
        run(tmp_path, profile=text)
