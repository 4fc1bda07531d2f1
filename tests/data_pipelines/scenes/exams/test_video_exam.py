"""The exam of a video model: the truth clears every bar that is its own, clips of other questions do not."""

import dataclasses
import itertools

import numpy as np
import pytest

from data_pipelines.scenes.exams import video_exam
from data_pipelines.scenes.video import world as video_world
from nova_jax import tasks
from nova_jax.evaluation import exam, task_evaluation
from nova_jax.models.text import ByteTextEncoder

WORLD = dataclasses.replace(video_world.REEL_36, frames=13, fps=12)
LIMITS = tasks.VideoLimits(height=36, width=64, frames=13, fps=12)
EXAM = video_exam.Exam(world=WORLD, per_task=4, shots=2)
PARTS = ["video", "video_held_out", "camera", "start", "film", "film_apart", "still"]


@pytest.fixture(scope="module")
def parts():
    return {part.name: part for part in EXAM.parts(LIMITS, 2.0)}


@pytest.fixture(scope="module")
def graded(parts):
    """The rows of the truth, with chance beside it."""
    answered = {}
    for name, part in parts.items():
        true = np.stack([q.truth for q in part.questions])
        right, wrong = part.judge(true), part.judge(np.roll(true, 1, axis=0))
        levels = {"model": right, "ceiling": right, "chance": wrong}
        answered[name] = task_evaluation.Answered(part, true, levels, 0.0)
    rows, _ = task_evaluation.grade(EXAM, answered)
    return {(row.part, row.score): row for row in rows if not row.group}


@pytest.mark.long
def test_the_truth_meets_every_bar_but_the_gain_over_itself(graded):
    barred = {key: row for key, row in graded.items() if row.bar}
    assert set(barred) == {(bar.part, bar.score) for bar in EXAM.bars}
    assert [key for key, row in barred.items() if not row.is_met] == [("film", "carried_gain")]
    assert graded["film", "carried_gain"].value == 0


@pytest.mark.long
def test_the_truth_has_every_rate_at_one_and_other_answers_have_not(graded):
    rates = ("correct", "cast", "attributes", "direction", "camera", "family", "persistent", "cuts")
    found = {key: row for key, row in graded.items() if key[1] in rates}
    assert {part for part, _ in found} == set(PARTS)
    assert all(row.value == row.ceiling == 1 for row in found.values())
    chances = [row.chance for (_, score), row in found.items() if score == "correct"]
    assert max(chances) <= 0.25


@pytest.mark.long
def test_questions_ask_for_what_the_truth_shows(parts):
    assert list(parts) == PARTS
    for name in ("video", "video_held_out", "camera", "start"):
        for q in parts[name].questions:
            assert isinstance(q.ask, tasks.TextToVideo)
            assert q.truth.shape == (13, 36, 64, 3)
            assert (q.ask.image is not None) == (name == "start")
    for q in parts["start"].questions:
        np.testing.assert_array_equal(q.ask.image, q.truth[0])
    for together, apart in zip(parts["film"].questions, parts["film_apart"].questions, strict=True):
        np.testing.assert_array_equal(together.truth, apart.truth)
        assert [shot.text for shot in together.ask.storyboard] == [request.text for request in apart.ask.requests]
        assert [request.seed for request in apart.ask.requests] == [together.ask.seed, together.ask.seed + 1]
        assert together.truth.shape == (26, 36, 64, 3)
    assert all(q.ask.size == (36, 64) and q.truth.shape == (1, 36, 64, 3) for q in parts["still"].questions)


def test_every_motion_of_the_camera_is_asked_for_before_any_is_again():
    several = dataclasses.replace(EXAM, per_task=15)
    shots = [several._still_cast(index)[1] for index in range(15)]
    assert {shot.camera.motion for shot in shots} == set(video_world.CAMERA_MOTIONS)
    families = [video_world.CAMERA_MOTIONS[shot.camera.motion] for shot in shots]
    assert all(a != b for a, b in itertools.pairwise(families))
    assert all(actor.direction is None for shot in shots for actor in shot.actors)


def test_captions_are_cut_to_what_the_model_reads():
    short = dataclasses.replace(EXAM, cut=ByteTextEncoder(length=20).cut).parts(LIMITS, 2.0)
    texts = [q.ask.text for part in short if part.name in ("video", "still") for q in part.questions]
    assert max(map(len, texts)) == 19


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"per_task": 1}, "give 2 or more"),
        ({"shots": 5}, "2 to 4"),
        ({"world": video_world.ReelWorld()}, "held-out pairs"),
    ],
)
def test_an_exam_that_cannot_be_set_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        video_exam.Exam(**changes)


def test_a_model_of_another_size_is_refused():
    with pytest.raises(ValueError, match="but the model films 25 of 64 x 36"):
        EXAM.parts(tasks.TINY_REEL, 2.0)


def test_a_bar_may_be_a_range():
    bar = exam.Bar("start", "motion", "within", 0.8, 1.25)
    assert str(bar) == "0.8 to 1.25"
    assert [bar.is_met(value) for value in (0.7, 0.8, 1.25, 1.3, float("nan"))] == [False, True, True, False, False]
