"""Scores of several runs against their training."""

import json

import pytest

from experiments.studies import training_curve
from nova_jax.config import ConfigError


def write_run(folder, steps, value, start_from=None, error=0.4):
    """A run as its files say: examined, 10 rows a step, cut before the steps that were asked."""
    (folder / "evaluation").mkdir(parents=True)
    saved = {"batch_size": 4, "steps": 2 * steps, "start_from": str(start_from) if start_from else None}
    (folder / "config.json").write_text(json.dumps({"config": saved, "samples_per_step": 10}))
    (folder / "log.jsonl").write_text(f'{{"step": 1}}\n{{"step": {steps}}}\n')

    def row(part, value, bar, is_met, ceiling):
        low, high = value - 0.02, value + 0.02
        scored = {"part": part, "score": "correct", "value": value, "low": low, "high": high, "n": 64, "group": ""}
        return {**scored, "bar": bar, "is_met": is_met, "ceiling": ceiling}

    rows = [
        row("add", value, "≥ 0.95", False, 1.0),
        row("add", 0.0, "≥ 0.95", False, 1.0) | {"group": "red"},
        row("remove", 0.99, "≥ 0.95", True, 1.0),
        row("text", value, "≥ 0.95", False, 0.9),
        row("colors", error, "≤ 0.1", False, None),
        row("dial", 0.0, "≥ 0.9", False, None) | {"value": None, "low": None, "high": None},
        row("gain", 100 * value, "≥ 95", False, None),
        row("motion", 2.0, "0.8 to 1.25", False, 1.0),
    ]
    (folder / "evaluation" / "scores.json").write_text(json.dumps({"scores": rows}))
    return folder


def test_curves_go_through_a_chain_of_runs(tmp_path, capsys):
    first = write_run(tmp_path / "first", steps=100, value=0.6)
    second = write_run(tmp_path / "second", steps=300, value=0.8, start_from=first, error=0.5)
    report = tmp_path / "curve.json"
    training_curve.main(training_curve.Settings(runs=(str(second), str(first)), report=str(report)))

    found = json.loads(report.read_text())
    assert [run["samples"] for run in found["runs"]] == [1000, 4000]
    add, text, colors, dial, gain = found["curves"]
    assert add["law"]["exponent"] == pytest.approx(0.5, rel=1e-6)  # half as far after four times as much
    assert add["samples_needed"]["value"] == pytest.approx(64_000, rel=1e-6)
    assert text["goal"] == pytest.approx(0.95 * 0.9)
    assert (colors["part"], colors["samples_needed"]["value"]) == ("colors", None)  # it gets worse
    assert (dial["part"], dial["law"]) == ("dial", None)  # a correlation of constants is no number
    assert (gain["goal"], gain["ceiling"]) == (95.0, 100.0)
    assert gain["samples_needed"]["value"] == pytest.approx(64_000, rel=1e-6)  # add in points
    printed = capsys.readouterr().out
    assert "add correct" in printed
    assert "6.4e+04" in printed
    assert "never" in printed


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ConfigError, match="name two or more examined runs"):
        training_curve.main(training_curve.Settings(runs=("runs/canvas",)))
    run = write_run(tmp_path / "run", steps=100, value=0.6)
    with pytest.raises(ConfigError, match=r"config.json is missing: name runs that are trained and examined"):
        training_curve.main(training_curve.Settings(runs=(str(run), str(tmp_path / "none"))))
    other = write_run(tmp_path / "other", steps=200, value=0.7)
    scores = json.loads((run / "evaluation" / "scores.json").read_text())["scores"]
    (run / "evaluation" / "scores.json").write_text(json.dumps({"scores": scores[1:]}))
    with pytest.raises(ConfigError, match="was not examined on add correct"):
        training_curve.main(training_curve.Settings(runs=(str(run), str(other))))
