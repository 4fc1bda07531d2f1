"""Clips are read back from their pixels: tracks, the camera with its parallax, impacts, cuts."""

import dataclasses
import math

import numpy as np
import pytest

from data_pipelines.scenes.exams import video_reading
from data_pipelines.scenes.video import render as video_render
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.world import REEL_36, Actor, Camera, Shot
from data_pipelines.scenes.world import Object
from nova_jax.evaluation.geneval import Detected

WORLD = dataclasses.replace(REEL_36, frames=13, fps=12)
STATIC, ASPECT = Camera(), WORLD.aspect
MIDDLE = Object("square", "red", "small", ASPECT / 2, 0.5, 0.145)


def film(actors, camera=STATIC, background="gray", backdrop=3):
    shot = Shot(tuple(actors), background, camera, WORLD.frames, WORLD.fps, ASPECT, backdrop)
    return video_render.render_shot(shot, (WORLD.height, WORLD.width))


def at(x, y, of=MIDDLE):
    """The object so far from the middle."""
    return of._replace(x=ASPECT / 2 + x, y=0.5 + y)


def seen(shape, x, color="red"):
    return Detected(shape, color, "small", x, 0.5, 0.2, 0.2)


@pytest.mark.parametrize("motion", video_world.CAMERA_MOTIONS)
def test_a_camera_is_read_with_how_far_it_goes(motion):
    amount = float(np.mean(video_world.AMOUNTS[video_world.CAMERA_MOTIONS[motion]]))
    family, way = video_world.CAMERA_MOTIONS[motion], motion.split()[-1]
    far = 0.0 if family in ("static", "zoom", "dolly", "roll") else 0.2
    start = {"left": (-far, 0), "right": (far, 0), "up": (0, -far), "down": (0, far)}.get(way, (0, 0))
    found = video_reading.camera(video_reading.read(film([Actor(at(*start))], Camera(motion, amount)), WORLD))
    assert found.motion == motion
    assert found.amount == pytest.approx(amount, rel=0.08)


def test_a_blank_backdrop_tells_nothing_of_the_camera():
    blank = np.full((5, 36, 64, 3), 250, np.uint8)
    reading = video_reading.read(blank, WORLD)
    assert reading.tracks == []
    assert video_reading.camera(reading) is None


@pytest.mark.parametrize(
    ("camera", "actor"),
    [
        (Camera(), Actor(at(-0.3, 0.1), dx=0.3, direction="right", speed="fast")),
        (Camera("pan left", 0.4), Actor(at(-0.3, 0.1), dy=-0.15, direction="up", speed="slow")),
        (Camera("truck right", 0.4), Actor(at(0.3, -0.2), 1.2, dy=0.3, direction="down", speed="fast")),
        (Camera("dolly in", 0.25), Actor(at(0.2, 0.0), 1.2, dx=-0.3, direction="left", speed="fast")),
        (Camera("roll clockwise", 25.0), Actor(at(0.1, 0.1), dx=-0.15, direction="left", speed="slow")),
        (Camera("zoom out", 1.4), Actor(at(0.3, 0.2))),
    ],
    ids=lambda value: getattr(value, "motion", None),
)
def test_an_actor_moves_as_it_does_whatever_the_camera_does(camera, actor):
    reading = video_reading.read(film([actor], camera), WORLD)
    (followed,) = reading.tracks
    assert followed.name == ("square", "red")
    assert followed.frames == list(range(WORLD.frames))
    found = video_reading.motion(followed, video_reading.camera(reading), WORLD)
    assert found[:2] == (actor.direction, actor.speed)
    assert math.dist(found.before, (actor.dx, actor.dy)) < 0.015


def test_the_direction_of_an_actor_is_that_before_it_is_hit():
    runs = Actor(at(-0.6, 0.0), dx=0.34, direction="right", speed="fast")
    waits = Actor(at(-0.15, 0.0, MIDDLE._replace(color="blue")))
    shot = Shot((runs, waits), "white", STATIC, WORLD.frames, WORLD.fps, ASPECT)
    meeting = video_world.impact(shot)
    assert meeting is not None
    reading = video_reading.read(video_render.render_shot(shot, (36, 64)), WORLD)
    for followed in reading.tracks:
        found = video_reading.motion(followed, Camera(), WORLD)
        first, second = (0.34, 0.0) if followed.name[1] == "red" else (0.0, 0.34)
        assert found.direction == ("right" if first else None)
        assert found.before[0] == pytest.approx(first, abs=0.02)
        assert found.after[0] == pytest.approx(second, abs=0.02)
        assert found.impact == pytest.approx(meeting.seconds, abs=0.09)


def test_an_object_that_vanishes_ends_its_track_and_one_that_comes_begins_one():
    objects = [[seen("circle", 0.3)], [seen("circle", 0.32)], [seen("circle", 0.34), seen("square", 1.2)]]
    objects += [[seen("square", 1.2)]] * 8
    objects += [[seen("circle", 0.34), seen("square", 1.2)]]
    tracks = video_reading.track(objects, np.zeros((len(objects), 36, 64, 3), np.uint8))
    assert [(t.name[0], t.frames[0], t.frames[-1]) for t in tracks] == [
        ("circle", 0, 2),
        ("square", 2, 11),
        ("circle", 11, 11),
    ]


def test_a_track_goes_through_a_change_of_colour():
    objects = [[seen("circle", 0.3)], [seen("circle", 0.31, "pink")], [seen("circle", 0.32)]]
    (followed,) = video_reading.track(objects, np.zeros((3, 36, 64, 3), np.uint8))
    assert followed.name == ("circle", "red")
    assert [d.color for d in followed.seen] == ["red", "pink", "red"]


def test_cuts_are_found_at_their_frames_and_nowhere_else():
    moving = Actor(at(-0.4, 0.0), dx=0.34, direction="right", speed="fast")
    shots = [
        film([moving], background="white"),
        film([Actor(at(0.3, 0.2))], Camera("pan left", 0.4), backdrop=4),
        film([Actor(at(0.3, 0.2))], Camera("zoom in", 1.4), backdrop=5),
    ]
    assert video_reading.cuts(np.concatenate(shots)) == [13, 26]
    assert all(video_reading.cuts(shot) == [] for shot in shots)


def test_the_joints_of_an_autoencoder_are_no_cuts():
    still = film([Actor(at(0.3, 0.2))], background="gray").astype(np.int32)
    jumps = 6 * (-(-np.arange(len(still)) // 4) % 2)  # every fourth frame is a little brighter or darker
    assert video_reading.cuts((still + jumps[:, None, None, None]).astype(np.uint8)) == []


def test_f1_of_cuts_counts_only_the_right_frame():
    assert video_reading.cut_f1([25, 50], [25, 50]) == 1
    assert video_reading.cut_f1([25, 51], [25, 50]) == 0.5
    assert video_reading.cut_f1([], []) == 1
    assert video_reading.cut_f1([], [25]) == 0
