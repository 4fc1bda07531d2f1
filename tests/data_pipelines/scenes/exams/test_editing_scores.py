"""Scores of the editing tasks: the truth scores all there is, and images of other elements next to nothing."""

import numpy as np
import pytest

from data_pipelines.scenes import render
from data_pipelines.scenes.editing import elements
from data_pipelines.scenes.editing import source as editing_source
from data_pipelines.scenes.exams import editing_scores
from data_pipelines.scenes.world import CANVAS_32, CANVAS_64

COUNT = 40
PERFECT = {"seam": 0, "error": 0, "outside": 0, "psnr": editing_scores.MAX_PSNR, "copied": 0, "palette_error": 0}
TOLERANCE = {"error": 5e-4, "edge_f1": 5e-3, "iou": 5e-3}  # of rounding, corners, and half covered pixels
# A score of each task that images of other elements must miss: at most this.
CHANCE = {
    **dict.fromkeys(("generate", "vary", "structure", "colors", "outpaint", "add", "replace"), ("correct", 0.15)),
    "remove": ("correct", 0.4),
    "segment": ("iou", 0.25),
    "matte": ("clear", 0.15),
}


def drawn(task, of=CANVAS_32, count=COUNT):
    scenes = editing_source.CanvasScenes(of, task, seed=8)
    return scenes, np.stack([scenes[i]["pixels"] for i in range(count)])


@pytest.mark.parametrize(("of", "count"), [(CANVAS_32, COUNT), (CANVAS_64, 12)], ids=["32", "64"])
@pytest.mark.parametrize("task", elements.TASKS)
def test_the_truth_scores_all_there_is(task, of, count):
    scenes, pictures = drawn(task, of, count)
    for name, score in editing_scores.score(scenes, pictures).items():
        assert score["value"] == pytest.approx(PERFECT.get(name, 1), abs=TOLERANCE.get(name, 1e-9)), name
        assert score["low"] - 1e-9 <= score["value"] <= score["high"] + 1e-9


@pytest.mark.parametrize("task", elements.TASKS)
def test_pictures_of_other_elements_score_chance(task):
    scenes, pictures = drawn(task)
    name, most = CHANCE[task]
    assert editing_scores.score(scenes, np.roll(pictures, 1, axis=0))[name]["value"] <= most


def test_a_comparison_holds_a_score_between_its_ceiling_and_its_chance():
    scenes, pictures = drawn("remove", count=20)
    off_by_one = pictures ^ 1
    scores = editing_scores.compare(scenes, pictures, reconstructions=off_by_one)
    assert scores["model"] == editing_scores.score(scenes, pictures)
    assert scores["ceiling"]["psnr"]["value"] == pytest.approx(20 * np.log10(255))
    assert scores["chance"] == editing_scores.score(scenes, np.roll(pictures, 1, axis=0))


@pytest.mark.parametrize("task", ["add", "replace", "remove"])
def test_an_untouched_source_keeps_everything_and_does_nothing(task):
    scenes, _ = drawn(task)
    untouched = np.stack([scenes[i]["source"] for i in range(COUNT)])
    scores = editing_scores.score(scenes, untouched)
    assert scores["outside"]["value"] == scores["correct"]["value"] == 0
    assert scores["kept"]["value"] == 1


def test_psnr_in_the_mask_falls_with_noise():
    scenes, pictures = drawn("remove")
    noise = np.random.default_rng(0).normal(0, 5, pictures.shape)
    noisy = np.clip(np.rint(pictures + noise), 0, 255).astype(np.uint8)
    found = editing_scores.score(scenes, noisy)
    assert found["psnr"]["value"] == pytest.approx(20 * np.log10(255 / 5), abs=1.5)
    assert found["correct"]["value"] == 1


def test_an_object_of_the_wrong_color_is_not_correct():
    scenes, pictures = drawn("add")
    for i in range(COUNT):
        truth = scenes.truth(i)
        o = truth.after.objects[truth.edited]
        wrong = o._replace(color="red" if o.color == "blue" else "blue")
        others = tuple(other for other in truth.after.objects if other != o)
        pictures[i, 0] = render.render(truth.after._replace(objects=(*others, wrong)), 32)
    scores = editing_scores.score(scenes, pictures)
    assert (scores["correct"]["value"], scores["kept"]["value"]) == (0, 1)


def test_a_picture_that_ignores_the_palette_is_far_from_it():
    scenes, pictures = drawn("colors")
    scores = editing_scores.score(scenes, 255 - pictures)
    assert scores["palette_error"]["value"] > 10
    assert scores["correct"]["value"] > 0.8


def test_a_copy_of_a_reference_is_told():
    scenes, _ = drawn("vary")
    copies = np.stack([scenes[i]["references"][:1] for i in range(COUNT)])
    scores = editing_scores.score(scenes, copies)
    assert scores["copied"]["value"] == scores["correct"]["value"] == 1


def test_black_pictures_find_nothing():
    scenes, pictures = drawn("segment", count=80)
    scores = editing_scores.score(scenes, np.zeros_like(pictures))
    assert (scores["iou"]["value"], scores["hit"]["value"], scores["empty"]["value"]) == (0, 0, 1)
    assert scores["iou"]["n"] + scores["empty"]["n"] == 80


def test_chosen_elements_are_judged_by_their_own_truth():
    scenes, pictures = drawn("generate")
    indices = [5, 2, 30]
    assert editing_scores.score(scenes, pictures[indices], indices)["correct"]["value"] == 1
