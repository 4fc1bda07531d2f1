"""Services get what log.jsonl gets."""

import sys
import types

import pytest

from nova_jax.training import tracking
from tests.training.test_logging import open_log


class Run:
    """Stands for a run of a service, and notes what it is told."""

    def __init__(self):
        self.calls = []

    def log(self, scalars, step):
        self.calls.append((step, scalars["loss"]))

    def finish(self):
        self.calls.append("finish")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_gets_every_logged_step_and_the_end_under_a_name_that_a_resumed_run_has_again(
    tmp_path, monkeypatch, name
):
    opened = []

    def init(**options):
        opened.append((options, Run()))
        return opened[-1][1]

    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(init=init))
    for folder in ("run", "run", "other"):
        with open_log(tmp_path / folder, trackers=[name]) as log:
            log.step(1, {"loss": 0.5})
            log.step(2, {"loss": 0.25})
    assert all(run.calls == [(1, 0.5), (2, 0.25), "finish"] for _, run in opened)
    first, again, other = (options for options, _ in opened)
    assert first == again != other
    assert first["resume"] == "allow"


def test_tensorboard_gets_the_same_scalars(tmp_path):
    pytest.importorskip("tensorboardX")
    with open_log(tmp_path, trackers=["tensorboard"]) as log:
        log.step(1, {"loss": 0.5})
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r'pip install "nova-jax\[wandb\]"'):
        open_log(tmp_path, trackers=["wandb"])


def test_an_unknown_service_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'mlflow'.* tensorboard, wandb, trackio"):
        tracking.check("mlflow")
