"""Scores: perfect images score one, unrelated images score chance."""

import numpy as np

from data_pipelines.scenes import render, source, world
from data_pipelines.scenes.world import Object, Scene


def draw_exactly(prompts, seeds):
    """Images of what prompts such as "a red circle" ask for, all in one place; other prompts get an empty scene."""
    pictures = []
    for prompt in prompts:
        words = prompt.split()
        is_one = words[-1] in world.QUICKSTART.shapes and len(words) in (2, 3)
        color = words[1] if len(words) == 3 else "red"
        objects = (Object(words[-1], color, "large", 0.5, 0.5, 0.25),) if is_one else ()
        pictures.append(render.render(Scene(objects, "gray"), 32)[None])
    return np.stack(pictures)


def test_ground_truth_is_read_back_completely():
    scenes = source.Scenes(seed=3, length=40)
    ceiling = scenes.read_back(np.stack([scenes[i]["pixels"] for i in range(40)]))
    assert (ceiling.rate, ceiling.n) == (1.0, 40)


def test_a_wrong_picture_is_not_read_back():
    scenes = source.Scenes(seed=3, length=2)
    assert scenes.read_back(np.stack([scenes[1]["pixels"], scenes[0]["pixels"]])).rate == 0.0


def test_pictures_that_show_what_was_asked_for_score_one():
    scored = source.Scenes().scorer(8).score(draw_exactly)
    rates = {name: task.rate for name, task in scored.summary.tasks.items()}
    assert rates["single_object"] == rates["colors"] == 1.0
    assert rates["two_object"] == rates["counting"] == 0.0
    assert len(scored.images) == len(scored.prompts) == len(scored.judged) == 48


def test_chance_is_reported_for_every_task():
    scored = source.Scenes().scorer(8).score(draw_exactly)
    assert all(0.0 < task.chance < 0.5 for task in scored.summary.tasks.values())
