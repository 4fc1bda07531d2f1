import dataclasses
import math

import numpy as np
import pytest

from data_pipelines.scenes import outlines
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.world import CAMERA_MOTIONS, REEL_36, Actor, Camera, Film, ReelWorld, Shot, View
from data_pipelines.scenes.world import Object

BALL = Object("circle", "red", "small", 0.5, 0.5, 0.14)
BOX = Object("square", "blue", "large", 1.2, 0.5, 0.19)


def of(*actors, camera=None, frames=25):
    return Shot(actors, "white", camera or Camera(), frames)


def moving(o, dx=0.0, dy=0.0, **more):
    return Actor(o, dx=dx, dy=dy, **more)


@pytest.mark.parametrize(("frames", "nearest"), [(24, 25), (26, 25), (27, 29), (0, 1)])
def test_frames_are_4k_plus_1_or_the_error_names_the_nearest_such_number(frames, nearest):
    with pytest.raises(ValueError, match=f"frames is {frames}; .* nearest being {nearest}"):
        ReelWorld(frames=frames)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shapes": ("circle", "star")}, "shapes names star; at 36 pixels"),
        ({"height": 16, "width": 32}, "16 pixels high"),
        ({"width": 20}, "20 wide"),
        ({"cameras": ("whip pan",)}, "cameras is .*; give one or more different names out of static, pan left"),
        ({"static": 1.5}, "static is 1.5"),
        ({"max_actors": 3}, "max_actors is 3"),
        ({"held_out": (("star", "red"),)}, "held_out names"),
        ({"fps": 0}, "fps is 0"),
    ],
)
def test_a_world_that_cannot_be_shown_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        ReelWorld(**wrong)


def test_stars_are_allowed_where_they_can_be_read():
    assert dataclasses.replace(REEL_36, height=72, width=128, shapes=tuple(outlines.SHAPES)).aspect == REEL_36.aspect


@pytest.mark.parametrize(("motion", "family"), CAMERA_MOTIONS.items())
def test_only_travelling_cameras_move_near_layers_more_than_far_ones(motion, family):
    camera = Camera(motion, video_world.AMOUNTS[family][1])
    near, far = (video_world.view(camera, depth, 1.0) for depth in (1.0, video_world.BACKDROP))
    assert video_world.view(camera, 1.0, 0.0) == View(dx=near.dx * 0, dy=near.dy * 0)
    if family == "dolly":
        assert abs(math.log(near.scale)) > 2 * abs(math.log(far.scale)) > 0
    elif family in ("truck", "pedestal"):
        np.testing.assert_allclose([near.dx, near.dy], video_world.BACKDROP * np.array([far.dx, far.dy]))
        assert near != far
    else:
        assert near == far
        assert (near == View()) == (family == "static")


@pytest.mark.parametrize(
    ("motion", "x", "y"), [("pan left", 1, 0), ("truck right", -1, 0), ("tilt up", 0, 1), ("pedestal down", 0, -1)]
)
def test_the_picture_moves_against_the_camera(motion, x, y):
    last = video_world.objects_at(of(Actor(BALL), camera=Camera(motion, 0.3)), 24)[0]
    np.testing.assert_allclose([last.x - BALL.x, last.y - BALL.y], [0.3 * x, 0.3 * y], atol=1e-12)
    assert last.radius == BALL.radius


def test_zoom_scales_and_roll_turns_about_the_middle():
    off = Object("square", "red", "small", 8 / 9 + 0.2, 0.5, 0.14)
    zoomed = video_world.objects_at(of(Actor(off), camera=Camera("zoom in", 1.5)), 24)[0]
    np.testing.assert_allclose([zoomed.x, zoomed.y, zoomed.radius], [8 / 9 + 0.3, 0.5, 0.21])
    # A camera that rolls clockwise turns the image counterclockwise: what was on the right goes up.
    rolled = video_world.objects_at(of(Actor(off), camera=Camera("roll clockwise", 30.0)), 24)[0]
    np.testing.assert_allclose([rolled.x - 8 / 9, rolled.y - 0.5], [0.2 * math.cos(math.pi / 6), -0.1])
    assert rolled.rotation == -30


def test_speed_is_per_second_whatever_the_number_of_frames():
    actor = moving(BALL, dx=0.3, spin=90.0)
    for frames in (25, 49):
        after = video_world.objects_at(of(actor, frames=frames), 24)[0]
        assert after.x == pytest.approx(0.8)
        assert after.rotation == 90


def test_truth_is_what_a_perfect_detector_reports():
    (seen,) = video_world.truth(of(moving(BALL, dx=0.24)), 12)
    assert seen[:3] == ("circle", "red", "small")
    np.testing.assert_allclose(seen[3:7], [0.62, 0.5, 0.28, 0.28], atol=0.01)


def simulate(shot, steps=4_000):
    """Positions at the end, by small steps of two boxes that swap velocities when they come within `CONTACT`."""
    duration = (shot.frames - 1) / shot.fps
    place = np.array([a.object[3:5] for a in shot.actors], float)
    velocity = np.array([(a.dx, a.dy) for a in shot.actors])
    half = [np.array(a.object._replace(x=0.0, y=0.0).box).reshape(2, 2) for a in shot.actors]
    for _ in range(steps):
        place += velocity * duration / steps
        (low_a, high_a), (low_b, high_b) = (half[i] + place[i] for i in (0, 1))
        apart = np.maximum(low_b - high_a, low_a - high_b) - video_world.CONTACT
        axis = int(apart.argmax())
        towards = (velocity[0] - velocity[1])[axis] * (place[1] - place[0])[axis] > 0
        if apart[axis] < 0 and towards:
            velocity[:, axis] = velocity[::-1, axis]
    return place, velocity


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (moving(BALL, dx=0.5), Actor(BOX)),
        (moving(BALL, dx=0.4), moving(BOX, dx=-0.3)),
        (moving(BALL._replace(y=0.1), dx=0.6, dy=0.4), moving(BOX, dx=-0.3, dy=-0.1)),
        (moving(BALL._replace(x=1.2, y=0.9), dy=-0.4), Actor(BOX._replace(y=0.3))),
        (moving(BALL, dx=-0.2), Actor(BOX)),
    ],
)
def test_two_actors_that_meet_exchange_velocities_at_the_exact_time(a, b):
    shot = of(a, b)
    place, velocity = simulate(shot)
    np.testing.assert_allclose([o[3:5] for o in video_world.unmoved(shot, 1.0)], place, atol=1e-3)
    step = 1e-3
    before, after = (np.array([o[3:5] for o in video_world.unmoved(shot, 1.0 - k * step)]) for k in (1, 0))
    read = (after - before) / step
    np.testing.assert_allclose(read, velocity, atol=1e-6)
    first = np.array([(x.dx, x.dy) for x in (a, b)])
    np.testing.assert_allclose(read.sum(axis=0), first.sum(axis=0), atol=1e-9)  # momentum
    assert (read**2).sum() == pytest.approx((first**2).sum())  # energy
    assert (video_world.impact(shot) is None) == (a.dx == -0.2)


def test_actors_at_different_depths_do_not_meet():
    a, b = moving(BALL, dx=0.5), Actor(BOX, depth=1.2)
    assert video_world.impact(of(a, b)) is None
    assert video_world.impact(of(a, b._replace(depth=1.0))) is not None


def test_the_cuts_of_a_film_are_the_first_frames_of_its_later_shots():
    film = Film((of(Actor(BALL)), of(Actor(BALL), frames=13), of(Actor(BALL))))
    assert film.frames == 63
    assert film.cuts == (25, 38)
