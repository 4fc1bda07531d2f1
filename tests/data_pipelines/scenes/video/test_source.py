import pickle

import numpy as np
import pytest

from data_pipelines.scenes import parser
from data_pipelines.scenes.video import render as video_render
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.elements import TASKS
from data_pipelines.scenes.video.source import Reels
from data_pipelines.scenes.video.world import REEL_36, ReelWorld
from data_pipelines.sources import base

SIZE = (36, 64)


@pytest.mark.parametrize("task", TASKS)
def test_elements_depend_on_seed_and_index_alone(task):
    a, b = Reels(task=task, seed=2), pickle.loads(pickle.dumps(Reels(task=task, seed=2, length=10)))
    assert len(b) == 10
    for i in (7, 0, 7):
        one, other = a[i], b[i]
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
        assert a.shot(i) == b.shot(i)
    assert Reels(task=task, seed=3).shot(0) != a.shot(0)
    assert Reels(task="video", seed=2).shot(0) != Reels(task="film", seed=2).shot(0)


def test_a_video_shows_its_shot():
    source = Reels(seed=1)
    for i in range(3):
        element = source[i]
        assert element["pixels"].shape == (25, 36, 64, 3)
        assert element["pixels"].dtype == np.uint8
        np.testing.assert_array_equal(element["pixels"], video_render.render_shot(source.shot(i), SIZE))


def test_an_image_is_one_frame_and_its_caption_says_nothing_of_motion():
    source = Reels(task="image")
    for i in range(20):
        element, shot = source[i], source.shot(i)
        assert element["pixels"].shape == (1, 36, 64, 3)
        assert shot.camera.motion == "static"
        assert not any(a.direction or a.spin for a in shot.actors)
        words = element["caption"].split()
        assert not {"moving", "standing", "spinning", "camera"} & set(words)
        assert all(a.object.shape in words or a.object.shape + "s" in words for a in shot.actors)


def test_the_references_of_a_film_show_its_cast_in_earlier_shots():
    source = Reels(task="film")
    counts = set()
    for i in range(8):
        element, taken, film = source[i], source.taken(i), source.film(i)
        count = int(element["num_references"])
        counts.add(count)
        assert taken.film == film
        assert film.shots[taken.target] == source.shot(i)
        assert count == taken.target
        assert element["pixels"].shape == (25, 36, 64, 3)
        assert element["references"].shape == (3, 36, 64, 3)
        assert (element["references"][count:] == 128).all()
        cast = sorted((a.object.shape, a.object.color) for a in source.shot(i).actors)
        for reference, shot, frame in zip(element["references"], film.shots, taken.frames, strict=False):
            np.testing.assert_array_equal(reference, video_render.render_frames(shot, [frame], SIZE)[0])
            assert sorted(d[:2] for d in parser.parse(reference, REEL_36)) == cast
    assert counts > {1}


def test_held_out_pairs_are_only_shown_when_asked_for():
    for task in TASKS:
        for held_out in (False, True):
            shots = [Reels(task=task, held_out=held_out).shot(i) for i in range(15)]
            pairs = {(a.object.shape, a.object.color) for shot in shots for a in shot.actors}
            assert all((pair in REEL_36.held_out) == held_out for pair in pairs)


@pytest.mark.parametrize(
    ("choices", "says"),
    [
        ({"task": "clip"}, "task is 'clip'; give one of video, image, film"),
        ({"seed": -1}, "seed is -1"),
        ({"held_out": True, "world": ReelWorld()}, "holds nothing out"),
    ],
)
def test_choices_that_make_no_source_are_refused(choices, says):
    with pytest.raises(ValueError, match=says):
        Reels(**choices)


def test_only_films_have_a_film():
    with pytest.raises(ValueError, match="give task='film'"):
        Reels().film(0)
    with pytest.raises(IndexError):
        Reels(length=3)[3]


def test_the_fingerprint_changes_with_every_choice():
    choices = [Reels(), Reels(seed=1), Reels(task="film"), Reels(ReelWorld(static=0.5)), Reels(held_out=True)]
    assert len({base.fingerprint(choice) for choice in choices}) == len(choices)
    assert base.fingerprint(Reels()) == base.fingerprint(Reels(world=video_world.REEL_36))


def test_pictures_of_another_size_show_the_same_shots():
    small, large = Reels(), Reels(video_world.REEL_72)
    assert small.shot(4) == large.shot(4)
    a, b = small[4], large[4]
    assert a["caption"] == b["caption"]
    halved = b["pixels"].reshape(25, 36, 2, 64, 2, 3).mean(axis=(2, 4))
    assert np.abs(halved - a["pixels"]).mean() < 1.5


def test_the_three_tasks_have_different_streams():
    assert TASKS == ("video", "image", "film")
    assert len({str(Reels(task=task)[0]["caption"]) for task in TASKS}) == 3
