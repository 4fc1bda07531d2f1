"""`nova evaluate` on an untrained editing run: what it writes, and what it refuses."""

import json
import math
import shutil
import types

import numpy as np
import PIL.Image
import pytest

from data_pipelines.scenes.exams import editing_exam
from nova_jax import cli
from nova_jax.evaluation import exam, task_evaluation, task_report
from tests import tiny_canvas

PARTS = [*editing_exam.KINDS, "negative_off", "negative", "negative_words", "vary_similarity", "structure_strength"]


@pytest.fixture(scope="module")
def runs(once, tmp_path_factory):
    """Copies of pretraining and editing, which have learnt nothing: what they draw is noise."""
    folder, copy = once("tiny_canvas", tiny_canvas.train), tmp_path_factory.mktemp("canvas")
    return [shutil.copytree(folder / name, copy / name) for name in ("pretraining", "canvas")]


def score(value, low, high, n=100):
    return {"value": value, "low": low, "high": high, "n": n}


@pytest.mark.long
def test_the_command_scores_every_part_of_an_editing_run_and_writes_the_page(runs, capsys):
    cli.main(["evaluate", "--run", str(runs[1]), "--per-task", "2"])
    printed = capsys.readouterr().out
    found = json.loads((runs[1] / "evaluation" / "scores.json").read_text())
    assert list(dict.fromkeys(row["part"] for row in found["scores"])) == PARTS
    assert {row["part"] for row in found["dials"]} == {"vary_similarity", "structure_strength"}
    barred = {(row["part"], row["score"]) for row in found["scores"] if row["bar"]}
    possible = {(bar.part, bar.score) for bar in editing_exam.BARS}
    assert barred <= possible
    outside = [row["value"] for row in found["scores"] if row["score"] == "outside"]
    assert outside
    assert set(outside) == {0.0}
    assert {"command", "environment", "seconds", "guidance", "per_task", "step"} <= set(found)
    page = (runs[1] / "evaluation" / task_report.REPORT).read_text()
    assert all(f"<h2>{part}</h2>" in page for part in PARTS)
    assert page.count("<img") == 2 * len(PARTS)
    assert "bars met" in printed
    assert str(runs[1] / "evaluation" / task_report.REPORT) in printed


@pytest.mark.long
def test_an_earlier_evaluation_stays_unless_it_is_to_be_replaced(runs, tmp_path, monkeypatch):
    paper = types.SimpleNamespace(parts=lambda limits, guidance: [])
    monkeypatch.setattr(task_evaluation, "find_exam", lambda *facts: paper)
    monkeypatch.setattr(task_evaluation, "grade", lambda *facts: ([], []))
    found = [task_evaluation.run(runs[1], folder=tmp_path / "scores", guidance=g).folder.name for g in (2.0, 3.0)]
    found.append(task_evaluation.run(runs[1], folder=tmp_path / "scores", guidance=4.0, overwrite=True).folder.name)
    assert found == ["scores", "scores-2", "scores"]
    kept = [json.loads((tmp_path / name / "scores.json").read_text())["guidance"] for name in ("scores", "scores-2")]
    assert kept == [4.0, 3.0]


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--per-task=1", "per_task is 1; it must be a whole number from 2"),
        ("--per-task=-3", "per_task is -3; it must be a whole number from 2"),
        ("--guidance=nan", "guidance is nan; it must be a number from 1.1 to 10"),
        ("--guidance=0.5", "guidance is 0.5; it must be a number from 1.1 to 10"),
    ],
)
def test_numbers_out_of_range_are_one_sentence(option, sentence):
    with pytest.raises(SystemExit, match=f"nova: {sentence}"):
        cli.main(["evaluate", "--run", "nowhere", option])


@pytest.mark.long
@pytest.mark.usefixtures("only_the_wheel")
def test_without_the_repository_the_exam_says_what_it_needs(runs):
    with pytest.raises(SystemExit, match=r"nova: class 'data_pipelines.* run this in a checkout of the repository"):
        cli.main(["evaluate", "--run", str(runs[1])])


@pytest.mark.long
def test_a_run_that_does_not_edit_is_refused_before_anything_is_drawn(runs, capsys):
    with pytest.raises(SystemExit, match="needs an editing model"):
        cli.main(["evaluate", "--run", str(runs[0]), "--per-task", "2"])
    assert "images in" not in capsys.readouterr().out


def test_a_run_of_data_without_known_answers_is_refused(trained):
    with pytest.raises(ValueError, match="without known answers"):
        task_evaluation.run(trained)


def test_a_score_that_follows_its_dial_correlates_and_a_constant_one_has_no_correlation():
    settings = [0.0, 0.5, 1.0]
    rising = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    assert task_evaluation.correlate(settings, rising) == pytest.approx(score(1, 1, 1, 6))
    assert task_evaluation.correlate(settings, -rising)["value"] == pytest.approx(-1)
    assert math.isnan(task_evaluation.correlate(settings, np.ones((2, 3)))["value"])


def test_losses_count_in_points_and_in_units():
    before, after = score(0.9, 0.8, 0.95), score(0.87, 0.8, 0.9)
    fallen = exam.points_lost(before, after)
    assert fallen["value"] == pytest.approx(3)
    assert fallen["low"] < 0 < 3 < fallen["high"]
    assert exam.lost(score(30.0, 29.0, 31.0), score(28.0, 27.0, 29.0))["value"] == 2


def test_of_a_rate_that_never_was_no_share_is_left_and_no_bar_is_met():
    assert exam.share_left(score(0.4, 0.3, 0.5), score(0.1, 0.05, 0.2))["value"] == pytest.approx(0.25)
    nothing = exam.share_left(score(0.0, 0.0, 0.1), score(0.0, 0.0, 0.1))["value"]
    assert not exam.Bar("negative", "share_left", "at most", 0.2).is_met(nothing)


def test_a_sheet_has_a_row_for_each_part(tmp_path):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, 1, 8, 8, 3), np.uint8)
    questions = tuple(exam.Question(exam.Locate(picture[0], "a circle"), picture) for picture in pictures)
    part = exam.Part("one", questions, lambda drawn: [{} for _ in drawn])
    answered = {name: task_evaluation.Answered(part, pictures, {}, 0.0) for name in ("one", "two")}
    found = task_evaluation.Evaluation([], [], answered, {}, tmp_path)
    path = task_report.save_sheet(found, tmp_path / "sheet.png", ["one", "two"], per_part=2, upscale=1)
    sheet = np.asarray(PIL.Image.open(path))
    assert sheet.shape == (2 * (8 + 4), 2 * (3 * 8 + 2 * 2 + 8), 3)
    np.testing.assert_array_equal(sheet[12:20, :8], pictures[0, 0])


def test_strips_put_pictures_side_by_side_with_a_gap():
    white, black = (np.full((4, 3, 3), level, np.uint8) for level in (255, 0))
    joined = task_report.strip([black, white, black])
    assert joined.shape == (4, 13, 3)
    assert (joined[:, 3:5] == 255).all()
