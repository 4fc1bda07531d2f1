"""The exam of an editing model: the truth clears every bar, images of other questions do not."""

import numpy as np
import pytest

from data_pipelines.scenes import world
from data_pipelines.scenes.exams import editing_exam
from nova_jax import tasks
from nova_jax.evaluation import task_evaluation
from nova_jax.models.text import ByteTextEncoder

LIMITS = tasks.Limits(min_side=32, max_side=128, multiple=8, default_side=32)
EXAM = editing_exam.Exam(per_task=16)
REACH = 10  # pixels that an image is off at the lowest setting of a dial


@pytest.fixture(scope="module")
def parts():
    return {part.name: part for part in EXAM.parts(LIMITS, 2.0)}


@pytest.fixture(scope="module")
def graded(parts):
    """Rows and curves of the truth."""
    return grade(parts, truth)


def truth(questions):
    """The true images; with a dial, off by the less the higher it stands."""
    off = [0 if q.setting is None else round(REACH * (1 - q.setting)) for q in questions]
    return np.stack([np.roll(q.truth, shift, axis=2) for q, shift in zip(questions, off, strict=True)])


def grade(parts, draw):
    answered = {name: task_evaluation.sit(part, draw, truth) for name, part in parts.items()}
    return task_evaluation.grade(EXAM, answered)


@pytest.mark.long
def test_the_truth_meets_every_bar(graded):
    rows, curves = graded
    barred = {(row.part, row.score): row for row in rows if row.bar}
    assert set(barred) == {(bar.part, bar.score) for bar in EXAM.bars}
    assert all(row.is_met for row in barred.values()), [row for row in barred.values() if not row.is_met]
    assert {curve.dial for curve in curves} == {"similarity_strength", "control_strength"}


@pytest.mark.long
def test_the_truth_has_every_rate_at_one(graded):
    rates = [row for row in graded[0] if row.score in ("correct", "kept", "absent", "hit", "empty", "clear", "said")]
    assert len(rates) > 30
    assert all(row.value == row.ceiling == 1 for row in rates)


@pytest.mark.long
def test_pictures_of_other_questions_meet_no_bar_of_what_was_asked(parts):
    asked = ("generate", "generate_held_out", "add", "replace", "remove", "segment", "matte", "vary", "colors")
    some = {name: parts[name] for name in (*asked, "colors_text")}
    rows, _ = grade(some, lambda questions: np.roll(truth(questions), 3, axis=0))
    by_score = {(row.part, row.score): row for row in rows}
    judged = [row for row in rows if row.bar and row.score not in ("caption_loss", "absent")]
    assert len(judged) >= 10
    assert not any(row.is_met for row in judged), [row for row in judged if row.is_met]
    assert by_score["generate", "correct"].value <= 0.2
    assert by_score["generate", "correct"].ceiling == 1


@pytest.mark.long
def test_masks_are_black_where_an_edit_draws_and_white_where_an_outpainting_does(parts):
    for name in ("add", "replace", "remove", "outpaint", "outpaint_soft"):
        for question in parts[name].questions:
            differs = (question.truth[0] != question.ask.image).any(axis=-1)
            assert not differs[~question.ask.mask].any()
    assert all(q.ask.removes for q in parts["remove"].questions)
    assert {q.ask.mode for q in parts["outpaint_soft"].questions} == {"DEFAULT"}


@pytest.mark.long
def test_variations_and_colours_are_grouped_by_how_many_there_are(parts):
    for question in parts["vary"].questions:
        assert question.groups[0].startswith(f"{len(question.ask.images)} reference")
    for question in parts["colors"].questions:
        assert question.groups[0].startswith(f"{len(question.ask.colors)} color")
        assert (question.ask.reference_image is None) == ("without a reference" in question.groups)


@pytest.mark.long
def test_what_is_asked_away_is_often_there_without_negative_text(parts, graded):
    shown = {row.part: row.value for row in graded[0] if row.score == "shown"}
    assert shown["negative_off"] > 0.2
    assert shown["negative"] == shown["negative_words"] == 0
    for plain, asked in zip(parts["negative_off"].questions, parts["negative"].questions, strict=True):
        assert plain.ask.text == asked.ask.text
        assert plain.ask.settings == asked.ask.settings
        assert asked.ask.negative_text.startswith(f"{asked.ask.text} on ")


@pytest.mark.long
def test_baselines_share_captions_and_seeds_with_what_is_measured_against_them(parts):
    for name in ("structure_edges", "structure_segmentation", "colors"):
        plain = parts[f"{name.split('_')[0]}_text"]
        for ours, theirs in zip(parts[name].questions, plain.questions, strict=True):
            assert ours.ask.text == theirs.ask.text
            assert ours.ask.settings == theirs.ask.settings


def test_captions_are_cut_to_what_the_model_reads():
    short = editing_exam.Exam(per_task=16, cut=ByteTextEncoder(length=20).cut).parts(LIMITS, 2.0)
    texts = [q.ask.text for part in short if part.name in ("generate", "add") for q in part.questions]
    assert max(map(len, texts)) == 19


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"per_task": 1}, "give 2 or more"), ({"world": world.QUICKSTART}, "held-out pairs")],
)
def test_an_exam_that_cannot_be_set_says_why(changes, message):
    with pytest.raises(ValueError, match=message):
        editing_exam.Exam(**changes)
