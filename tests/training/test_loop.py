"""The loop: order of work, saving, stopping; interruptions by real signals are in test_faults.py."""

import io
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from nova_jax.training import checkpoint, logging, loop
from nova_jax.types import TrainState
from tests.training.test_logging import lines

STATE = TrainState(step=jnp.int32(0), params={"w": jnp.zeros(())}, ema={}, opt_state=())


def counting_step(state, batch):
    """Sums the batches; the loss is the sum."""
    total = state.params["w"] + batch
    return state._replace(step=state.step + 1, params={"w": total}), {"loss": total, "finite": jnp.isfinite(total)}


def numbers(position):
    """The batch at a position is the position."""
    while True:
        yield jnp.float32(position)
        position += 2


def run(
    directory, *, steps=6, train_step=counting_step, batches=numbers, state=STATE, position=0, callbacks=(), **options
):
    options = {"log_every": 2, "checkpoint_every": 3} | options
    log = logging.RunLog(
        directory,
        logging.Throughput(2),
        total_steps=steps,
        start_step=int(state.step),
        console=rich.console.Console(file=io.StringIO()),
    )
    with log, checkpoint.Checkpoints(directory / "checkpoints", keep=9) as checkpoints:
        return loop.fit(
            state,
            train_step,
            batches,
            loop=loop.Loop(steps=steps, batch_size=2, **options),
            checkpoints=checkpoints,
            log=log,
            position=position,
            callbacks=callbacks,
        )


def saved(directory):
    return checkpoint.Checkpoints(directory / "checkpoints").steps()


def test_a_run_logs_saves_and_returns_its_last_state(tmp_path):
    state = run(tmp_path, steps=7)
    assert float(state.params["w"]) == sum(range(0, 14, 2))
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [(2, 2), (4, 12), (6, 30), (7, 42)]
    assert saved(tmp_path) == [3, 6, 7]


def test_a_resumed_run_goes_on_where_the_data_stopped(tmp_path):
    run(tmp_path / "whole", steps=6)
    run(tmp_path / "parts", steps=3)
    with checkpoint.Checkpoints(tmp_path / "parts" / "checkpoints") as checkpoints:
        restored = checkpoints.restore(STATE)
    assert restored.metadata == {"position": 6}
    run(tmp_path / "parts", steps=6, state=restored.state, position=restored.metadata["position"])
    assert lines(tmp_path / "parts")[-1]["loss_bits"] == lines(tmp_path / "whole")[-1]["loss_bits"]


def test_a_finished_run_has_nothing_to_do(tmp_path):
    state = run(tmp_path, steps=3)
    assert int(run(tmp_path, steps=3, state=state).step) == 3


def test_metrics_are_read_one_step_late(tmp_path, monkeypatch):
    """When step k + 1 is dispatched, nothing has waited for step k yet."""
    events = []
    device_get = jax.device_get

    def train_step(state, batch):
        events.append(f"dispatch {int(state.step) + 1}")
        return state._replace(step=state.step + 1), {"loss": jnp.float32(state.step + 1)}

    def read(tree):
        events.append(f"read {int(tree)}")
        return device_get(tree)

    monkeypatch.setattr(logging.RunLog, "step", lambda *args, **options: None)
    monkeypatch.setattr(jax, "device_get", read)
    run(tmp_path, steps=3, train_step=train_step, checkpoint_every=9)
    assert events == ["dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2", "read 3"]


def test_a_loss_that_is_not_finite_stops_with_the_step_and_the_last_good_checkpoint(tmp_path):
    def batches(position):
        for number in range(6):
            yield jnp.float32(np.nan if number == 4 else 1.0)

    with pytest.raises(loop.NonFiniteLoss, match=r"step 5: loss nan .* the last good checkpoint is step 3 in"):
        run(tmp_path, batches=batches)
    assert saved(tmp_path) == [3]


def test_a_state_with_a_loss_that_is_not_finite_is_never_saved(tmp_path):
    with pytest.raises(loop.NonFiniteLoss, match=r"step 1: .* no checkpoint was saved before"):
        run(tmp_path, batches=lambda position: iter([jnp.float32(np.inf)] * 2), checkpoint_every=1)
    assert saved(tmp_path) == []


def test_data_that_ends_early_is_an_error_with_the_position(tmp_path):
    with pytest.raises(RuntimeError, match="data ended before step 3 of 6, after 4 samples"):
        run(tmp_path, batches=lambda position: iter([jnp.float32(1.0)] * 2))


def test_callbacks_come_when_due_and_at_the_end_with_the_log_up_to_date(tmp_path):
    calls = []

    def draw(step, state):
        calls.append((step, int(state.step), len(lines(tmp_path))))

    run(tmp_path, steps=5, callbacks=[loop.Callback(every=2, run=draw)], log_every=1)
    assert calls == [(2, 2, 2), (4, 4, 4), (5, 5, 5)]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_75(tmp_path, number):
    def train_step(state, batch):
        if int(state.step) == 3:
            os.kill(os.getpid(), number)
        return counting_step(state, batch)

    with pytest.raises(SystemExit) as stop:
        run(tmp_path, steps=100, train_step=train_step)
    assert stop.value.code == 75
    assert saved(tmp_path) == [3, 4]
    stopped, ended = lines(tmp_path, "events.jsonl")
    assert "stopped by a signal and saved step 4" in stopped["event"]
    assert ended["event"] == "ended"


def test_a_signal_during_the_last_step_lets_the_run_finish(tmp_path):
    def train_step(state, batch):
        if int(state.step) == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return counting_step(state, batch)

    assert int(run(tmp_path, steps=6, train_step=train_step).step) == 6


def test_intervals_of_zero_are_refused():
    with pytest.raises(ValueError, match="all numbers must be at least 1"):
        loop.Loop(steps=1, batch_size=1, log_every=0)
