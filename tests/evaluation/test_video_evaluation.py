"""`nova evaluate` on an untrained video run: all parts are drawn and scored, and the page shows strips of frames."""

import dataclasses
import json

import numpy as np
import pytest

from nova_jax import cli, experiment, generation, tasks
from nova_jax.evaluation import exam, task_report, task_sampling
from nova_jax.training import checkpoint
from tests import tiny_reel

PARTS = ["video", "video_held_out", "camera", "start", "film", "film_apart", "still"]
LIMITS = tasks.VideoLimits(height=8, width=16, frames=9)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An untrained run: what it draws is noise, and no training step is compiled."""
    config = tiny_reel.make_config(tmp_path_factory.mktemp("reel"))
    videos, *_ = config.data.parts
    result = experiment.run(dataclasses.replace(config, data=videos[0], steps=0))
    with checkpoint.Checkpoints(result.directory / "checkpoints", keep=1, metadata={}) as checkpoints:
        checkpoints.save(0, result.state, {})
    return result.directory


def clip(frames, level=0):
    return np.full((frames, 8, 16, 3), level, np.uint8)


@pytest.mark.slow
def test_the_command_scores_every_part_of_a_video_run_and_writes_the_page(run, capsys):
    cli.main(["evaluate", "--run", str(run), "--per-task", "2"])
    found = json.loads((run / "evaluation" / "scores.json").read_text())
    assert list(dict.fromkeys(row["part"] for row in found["scores"])) == PARTS
    scores = {(row["part"], row["score"]): row for row in found["scores"] if not row["group"]}
    assert scores["start", "start_psnr"]["ceiling"] is not None
    assert scores["start", "psnr_gap"]["bar"] == "≤ 1"
    assert scores["film", "carried_gain"]["bar"] == "≥ 20"
    page = (run / "evaluation" / task_report.REPORT).read_text()
    assert all(f"<h2>{part}</h2>" in page for part in PARTS)
    assert page.count("<img") == 2 * len(PARTS)
    assert "bars met" in capsys.readouterr().out


@pytest.mark.slow
def test_shots_apart_are_those_that_are_asked_for_alone(run):
    trained = generation.load_run(run)
    limits = task_sampling.limits_of(trained)
    one, two = (tasks.TextToVideo(text=text, seed=seed, limits=limits) for seed, text in enumerate("ab"))
    drawn = task_sampling.sample(trained, [exam.Apart((one, two)), exam.Apart((two, one))], 2.0)
    alone = task_sampling.sample(trained, [one, two], 2.0)
    assert drawn.shape == (2, 18, 32, 32, 3)
    np.testing.assert_array_equal(drawn[0], np.concatenate(alone))
    np.testing.assert_array_equal(drawn[1], np.concatenate(alone[::-1]))


@pytest.mark.slow
def test_the_truth_of_a_film_is_rebuilt_shot_by_shot(run):
    trained = generation.load_run(run)
    limits = task_sampling.limits_of(trained)
    true = np.random.default_rng(0).integers(0, 256, (18, 32, 32, 3), np.uint8)
    film = tasks.MultiShotManual(shots=[tasks.ShotRequest("a"), tasks.ShotRequest("b")], limits=limits)
    shot = tasks.TextToVideo(text="b", limits=limits)
    (whole,) = task_sampling.rebuild(trained, [exam.Question(film, true)])
    (second,) = task_sampling.rebuild(trained, [exam.Question(shot, true[9:])])
    np.testing.assert_array_equal(whole[9:], second)


def test_frames_of_a_clip_stand_above_the_true_ones():
    request = tasks.TextToVideo(text="a", image=clip(1, 50)[0], limits=LIMITS)
    sheet = task_report.compared(exam.Question(request, clip(9, 100)), clip(9, 200))
    assert sheet.shape == (8 + 2 + 8, 7 * 16 + 6 * 2, 3)
    assert (sheet[0, 0, 0], sheet[0, 20, 0], sheet[-1, 0, 0], sheet[-1, 20, 0]) == (50, 200, 255, 100)
    numbered = np.arange(9, dtype=np.uint8)[:, None, None, None] * np.ones((8, 16, 3), np.uint8)
    assert [frame[0, 0, 0] for frame in task_report.some_frames(numbered)] == [0, 2, 3, 5, 6, 8]


def test_the_words_of_a_film_are_those_of_its_shots():
    shots = [tasks.ShotRequest("a circle"), tasks.ShotRequest(None), tasks.ShotRequest("it stops")]
    film = tasks.MultiShotManual(shots=shots, limits=LIMITS)
    assert task_report.words(film) == "a circle / a circle / it stops"
    alone = exam.Apart(tuple(tasks.TextToVideo(text=text, limits=LIMITS) for text in ("a", "b")))
    assert task_report.words(alone) == "a / b"
    assert task_report.given(alone) == task_report.given(film) == []
