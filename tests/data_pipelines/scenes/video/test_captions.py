import itertools
import re

import numpy as np
import pytest

from data_pipelines.scenes import randomness
from data_pipelines.scenes.video import captions as video_captions
from data_pipelines.scenes.video import sampling as video_sampling
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.captions import MAX_LENGTH
from data_pipelines.scenes.video.world import CAMERA_MOTIONS, REEL_36, Actor, Camera, Shot
from data_pipelines.scenes.world import Object

WAYS = {
    "left": "left",
    "to the left": "left",
    "right": "right",
    "to the right": "right",
    "up": "up",
    "upwards": "up",
    "down": "down",
    "downwards": "down",
}
COLORS, SHAPES = "|".join(REEL_36.colors), "|".join(REEL_36.shapes)
ACTOR = re.compile(
    rf"(?:an?|the) (?:(?P<size>small|large) )?(?:(?P<color>{COLORS}) )?(?P<shape>{SHAPES})(?:,? which)? "
    r"(?:(?P<still>standing still|stands still|spinning in place|spins in place)|"
    r"(?:(?P<spin>spinning|spins) and )?mov(?:ing|es)(?: (?P<speed>slowly|quickly))? "
    rf"(?P<way>{'|'.join(sorted(WAYS, key=len, reverse=True))}))"
)
CAMERA = re.compile(rf"(?:^|, )(?:camera )?({'|'.join(n for n in CAMERA_MOTIONS if n != 'static')})(?:, |$)")


def is_true(text, shot):
    """Whether a caption says of every actor in turn what it is and does, of the camera what it does, and no lie."""
    found = list(ACTOR.finditer(text))
    if len(found) != len(shot.actors):
        return False
    speeds = {"slowly": "slow", "quickly": "fast", None: None}
    for said, actor in zip(found, shot.actors, strict=True):
        o = actor.object
        named = said["shape"] == o.shape and said["color"] in (None, o.color) and said["size"] in (None, o.size)
        spins = (said["spin"] or said["still"] or "").startswith("spin")
        does = WAYS.get(said["way"]) == actor.direction and speeds[said["speed"]] in (None, actor.speed)
        if not (named and does and spins == bool(actor.spin)):
            return False
    camera = CAMERA.search(text)
    ground = re.search("on a (white|gray|black) background", text)
    meets = any(word in text for word in ("hits", "bumps into", "bounce", "collide"))
    return (
        (camera[1] if camera else "static") == shot.camera.motion
        and (not ground or ground[1] == shot.background)
        and meets == (video_world.impact(shot) is not None)
    )


@pytest.mark.parametrize("make", [video_captions.caption, video_captions.later_caption])
def test_captions_are_true_of_every_actor_and_of_the_camera(make):
    met = 0
    for i in range(60):
        rng = randomness.make_rng(7, i)
        shot = video_sampling.sample_shot(REEL_36, rng, REEL_36.seen)
        met += video_world.impact(shot) is not None
        for _ in range(4):
            text = make(shot, rng)
            assert is_true(text, shot), (text, shot)
            assert len(text.encode()) <= MAX_LENGTH
    assert met


def still(**more):
    return Actor(Object("triangle", "yellow", "small", 0.5, 0.5, 0.14), **more)


def test_the_longest_captions_keep_to_their_length_and_still_tell_everything():
    rng = np.random.default_rng(0)
    mover = still(dy=0.3, direction="down", speed="fast", spin=90.0)._replace(
        object=Object("triangle", "orange", "large", 1.2, 0.4, 0.2)
    )
    other = still(dy=-0.3, direction="right", speed="slow", spin=-90.0)
    for actors, motion in itertools.product(
        [(mover, other), (other, mover), (mover,)], ["static", "roll counterclockwise", "pedestal down"]
    ):
        shot = Shot(actors, "white", Camera(motion, 0.3), 25)
        for make in (video_captions.caption, video_captions.later_caption):
            texts = {make(shot, rng) for _ in range(200)}
            assert max(len(text.encode()) for text in texts) <= MAX_LENGTH
            assert all(is_true(text, shot) for text in texts)


def test_sizes_are_left_out_where_the_camera_changes_them():
    rng = np.random.default_rng(0)
    for motion in CAMERA_MOTIONS:
        texts = {video_captions.caption(Shot((still(),), "white", Camera(motion, 1.3), 25), rng) for _ in range(100)}
        assert any("small" in text for text in texts) == (CAMERA_MOTIONS[motion] not in ("zoom", "dolly"))


def test_camera_words_stand_at_the_start_or_at_the_end():
    rng = np.random.default_rng(0)
    texts = {video_captions.caption(Shot((still(),), "white", Camera("pan left", 0.3), 25), rng) for _ in range(200)}
    starts = sum(text.startswith(("pan left, ", "camera pan left, ")) for text in texts)
    ends = sum(text.endswith((", pan left", ", camera pan left")) for text in texts)
    assert starts + ends == len(texts)
    assert min(starts, ends) > 5


def test_a_later_shot_calls_known_actors_by_their_shape_alone_or_with_their_colour():
    rng = np.random.default_rng(0)
    texts = [video_captions.later_caption(Shot((still(),), "white", Camera(), 25), rng) for _ in range(100)]
    by_shape = sum("the triangle" in text for text in texts)
    assert 40 < by_shape < 80
    assert by_shape + sum("the yellow triangle" in text for text in texts) == 100


def test_every_meeting_is_said():
    a = still(dx=0.4, direction="right", speed="fast")
    b = Actor(Object("circle", "blue", "small", 1.1, 0.5, 0.14))
    rng = np.random.default_rng(0)
    hit = Shot((a, b), "white", Camera(), 25)
    bounce = Shot((a, b._replace(dx=-0.3, direction="left", speed="fast")), "white", Camera(), 25)
    texts = {make(shot, rng) for make in (video_captions.caption,) for shot in (hit, bounce) for _ in range(100)}
    assert all(any(w in t for w in ("hits", "bumps into", "bounce off each other", "collide")) for t in texts)
    assert all(is_true(video_captions.caption(shot, rng), shot) for shot in (hit, bounce) for _ in range(50))
