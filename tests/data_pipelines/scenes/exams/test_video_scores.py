"""Scores of clips: the truth scores all there is, even noisy or blurred; each fault lowers the score that names it."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.scenes.exams import video_scores
from data_pipelines.scenes.exams.video_scores import Said
from data_pipelines.scenes.video import captions as video_captions
from data_pipelines.scenes.video import render as video_render
from data_pipelines.scenes.video import sampling as video_sampling
from data_pipelines.scenes.video.source import Reels
from data_pipelines.scenes.video.world import REEL_36, Actor, Camera, Film, Shot
from data_pipelines.scenes.world import Object
from nova_jax.evaluation import intervals

WORLD = dataclasses.replace(REEL_36, frames=13, fps=12)
SIZE = (REEL_36.height, REEL_36.width)
RATES = ("attributes", "persistent", "cast", "direction", "speed", "family", "camera", "correct")
WORSE = {
    "clean": lambda clip, rng: clip,
    "noise": lambda clip, rng: clip + rng.normal(0, 6, clip.shape),
    "blur": lambda clip, rng: ndimage.gaussian_filter(clip.astype(np.float64), (0, 1, 1, 0)),
}
CIRCLE = Actor(Object("circle", "red", "small", 0.5, 0.3, 0.145), dx=0.3, direction="right", speed="fast")
SQUARE = Actor(Object("square", "blue", "small", 1.3, 0.7, 0.145))
SHOT = Shot((CIRCLE, SQUARE), "white", Camera(), WORLD.frames, WORLD.fps, WORLD.aspect, 7)


def levels(clip):
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8)


def drawn(shot):
    return video_render.render_shot(shot, SIZE)


def judge(clip, shot=SHOT, what=video_scores.ALL, of=WORLD):
    return video_scores.judge(shot, clip, drawn(shot), of, what)


def measure(of, count, kind, seed=5):
    """The mean of every score over shots of the source, their images made worse."""
    reels, rng = Reels(of, seed=seed), np.random.default_rng(0)
    judged = []
    for index in range(count):
        shot = reels.shot(index)
        judged.append(judge(levels(WORSE[kind](drawn(shot), rng)), shot, of=of))
    return {name: s["value"] for name in judged[0] if (s := intervals.summarize([j[name] for j in judged]))}


@pytest.mark.parametrize("kind", WORSE)
def test_the_truth_scores_all_there_is(kind):
    found = measure(WORLD, 4, kind)
    assert {name: found[name] for name in RATES} == dict.fromkeys(RATES, 1)
    assert found["velocity_error"] < 0.01
    assert found["motion"] == pytest.approx(1, abs=0.03)
    if kind == "clean":
        assert found["flicker"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", WORSE)
def test_ceilings_of_the_reading_on_200_shots(kind):
    found = measure(REEL_36, 200, kind, seed=11)
    print(kind, found)
    assert found["direction"] >= 0.99
    assert found["family"] >= 0.97
    assert found["attributes"] >= 0.99
    assert found["motion"] == pytest.approx(1, abs=0.02)


def test_wrong_colours_and_shapes_are_seen_unless_the_caption_leaves_them_open():
    blue = SHOT._replace(actors=(CIRCLE._replace(object=CIRCLE.object._replace(color="cyan")), SQUARE))
    found = judge(drawn(blue))
    assert (found["attributes"], found["cast"], found["correct"]) == (0, False, False)
    assert (found["persistent"], found["direction"]) == (True, True)
    assert judge(drawn(blue), what=Said(color=False))["correct"]
    assert not judge(drawn(SHOT._replace(actors=(SQUARE, CIRCLE._replace(object=SQUARE.object)))))["cast"]


def test_an_object_that_changes_or_vanishes_does_not_persist():
    red = drawn(SHOT)
    green = drawn(SHOT._replace(actors=(CIRCLE, SQUARE._replace(object=SQUARE.object._replace(color="green")))))
    gone = drawn(SHOT._replace(actors=(CIRCLE,)))
    for other in (green, gone):
        found = judge(np.concatenate([red[:9], other[9:]]))
        assert not found["persistent"]
        assert found["attributes"] == pytest.approx(9 / 13)
        assert found["direction"]


def test_a_clip_played_backwards_has_the_wrong_direction_and_a_slow_one_the_wrong_speed():
    assert judge(drawn(SHOT)[::-1].copy())["direction"] is False
    slow = judge(drawn(SHOT._replace(actors=(CIRCLE._replace(dx=0.15), SQUARE))))
    assert (slow["direction"], slow["speed"]) == (True, False)
    assert slow["velocity_error"] == pytest.approx(0.075, abs=0.01)
    assert slow["motion"] == pytest.approx(0.5, abs=0.03)
    assert (
        judge(drawn(SHOT._replace(actors=(CIRCLE._replace(dx=0.15), SQUARE))), what=Said(speed=False))["speed"] is None
    )


def test_a_camera_that_goes_the_other_way_is_of_the_right_family_alone():
    still = SHOT._replace(actors=(SQUARE._replace(object=SQUARE.object._replace(x=0.9, y=0.5)),))
    left, right = (still._replace(camera=Camera(f"pan {way}", 0.35)) for way in ("left", "right"))
    found = judge(drawn(right), left)
    assert (found["family"], found["camera"], found["correct"]) == (True, False, False)
    assert found["motion"] == pytest.approx(1, abs=0.05)
    frozen = judge(np.repeat(drawn(left)[:1], 13, axis=0), left)
    assert (frozen["family"], frozen["motion"]) == (False, 0)


def test_flicker_grows_with_what_changes_between_frames():
    true = drawn(SHOT)
    noisy = levels(true + np.random.default_rng(0).normal(0, 6, true.shape))
    assert video_scores.flicker(true, true) == 1
    assert video_scores.flicker(noisy, true) > 1.5
    assert video_scores.flicker(true[:2], true[:2]) is None


def test_the_first_frame_is_held_against_the_picture_given():
    true = drawn(SHOT)
    assert video_scores.start_psnr(true, true[0]) == video_scores.MAX_PSNR
    assert video_scores.start_psnr(true ^ 1, true[0]) == pytest.approx(20 * np.log10(255))


def test_captions_say_what_they_say():
    assert video_scores.said("a red circle moving quickly right and a blue square standing still", SHOT) == Said()
    text = "static camera, a circle moving right and a square standing still on a white background"
    assert video_scores.said(text, SHOT) == Said(color=False, speed=False, background=True)


@pytest.fixture(scope="module")
def film():
    """A film of three shots of two actors, its captions and its images."""
    rng, shots = np.random.default_rng(3), ()
    while len(shots) < 3 or len(shots[0].actors) < 2:
        shots = video_sampling.sample_film(WORLD, rng, WORLD.seen).shots
    texts = [video_captions.caption(shots[0], rng), *(video_captions.later_caption(shot, rng) for shot in shots[1:3])]
    return Film(shots[:3]), texts, np.concatenate([drawn(shot) for shot in shots[:3]])


def test_a_film_as_it_should_be_scores_all_there_is(film):
    found = video_scores.judge_film(*film, WORLD)
    right = ("correct", "carried", "cast", "direction", "speed", "camera")
    assert found == dict.fromkeys(right, True) | {"cuts": 1, "leaked": False}


def test_a_film_whose_last_shot_has_another_cast_does_not_carry_its_own(film):
    told, texts, clip = film
    last = told.shots[2]
    color = next(c for c in WORLD.colors if c not in {actor.object.color for actor in last.actors})
    first, *others = last.actors
    recast = last._replace(actors=(first._replace(object=first.object._replace(color=color)), *others))
    found = video_scores.judge_film(told, texts, np.concatenate([clip[:26], drawn(recast)]), WORLD)
    assert (found["carried"], found["correct"]) == (False, False)


def test_the_camera_of_one_shot_leaks_into_the_next(film):
    told, texts, clip = film
    first, second = told.shots[:2]
    assert video_scores.judge_film(Film((first, second)), texts[:2], clip[:26], WORLD)["leaked"] is False
    leaking = np.concatenate([clip[:13], drawn(second._replace(camera=first.camera))])
    assert video_scores.judge_film(Film((first, second)), texts[:2], leaking, WORLD)["leaked"] is True
