import collections
import dataclasses
import functools

import numpy as np
import pytest

from data_pipelines.scenes import randomness
from data_pipelines.scenes.video import sampling as video_sampling
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.world import CAMERA_MOTIONS, REEL_36, ReelWorld


@functools.cache
def shots_of_training():
    return [video_sampling.sample_shot(REEL_36, randomness.make_rng(0, i), REEL_36.seen) for i in range(120)]


@functools.cache
def films_of_training():
    return [video_sampling.sample_film(REEL_36, randomness.make_rng(1, i), REEL_36.seen) for i in range(12)]


def test_every_actor_stays_in_the_picture_and_apart_from_the_other_in_every_frame():
    low, right = REEL_36.border - 1e-5, REEL_36.aspect - REEL_36.border + 1e-5
    for shot in shots_of_training() + [shot for film in films_of_training() for shot in film.shots]:
        for frame in range(0, shot.frames, 4):
            boxes = np.array([o.box for o in video_world.objects_at(shot, frame)])
            assert boxes.min() >= low
            assert boxes[:, 2].max() <= right
            assert boxes[:, 3].max() <= 1 - low
            if len(boxes) == 2:
                gap = np.maximum(boxes[0, :2] - boxes[1, 2:], boxes[1, :2] - boxes[0, 2:]).max()
                assert gap >= (video_world.CONTACT if video_world.impact(shot) else REEL_36.gap) - 1e-5


def test_every_motion_of_the_camera_is_drawn_and_four_shots_in_ten_are_static():
    seen = collections.Counter(shot.camera.motion for shot in shots_of_training())
    assert set(seen) == set(CAMERA_MOTIONS)
    assert 0.3 < seen["static"] / len(shots_of_training()) < 0.5
    for shot in shots_of_training():
        low, high = video_world.AMOUNTS[CAMERA_MOTIONS[shot.camera.motion]]
        assert low <= shot.camera.amount <= high


def test_under_a_moving_camera_at_most_one_actor_moves_and_across_a_camera_that_goes_along_a_line():
    shots = [shot for shot in shots_of_training() if shot.camera.motion != "static"]
    moved = [sum(actor.direction is not None for actor in shot.actors) for shot in shots]
    assert max(moved) == 1
    assert 0.2 < np.mean(moved) < 0.45
    for shot in shots:
        along = video_world.view(shot.camera, 1.0, 1.0)
        assert not any(actor.spin for actor in shot.actors)
        assert all(actor.dx * along.dx == 0 and actor.dy * along.dy == 0 for actor in shot.actors)


def test_directions_and_speeds_are_those_of_the_velocities():
    for shot in shots_of_training():
        for actor in shot.actors:
            pace = np.hypot(actor.dx, actor.dy)
            if actor.direction is None:
                assert pace == 0
                assert actor.speed is None
            else:
                low, high = video_world.SPEEDS[actor.speed]
                assert low <= pace <= high
                np.testing.assert_allclose(
                    np.array([actor.dx, actor.dy]) / pace, video_world.DIRECTIONS[actor.direction], atol=1e-12
                )


def test_some_pairs_meet_within_the_shot_with_time_to_see_it():
    meetings = [met.seconds for shot in shots_of_training() if (met := video_world.impact(shot))]
    assert 0.02 < len(meetings) / len(shots_of_training()) < 0.15
    assert min(meetings) > 0.29
    assert max(meetings) < 0.61


def test_some_actors_spin_but_never_a_circle():
    spinning = [actor.object.shape for shot in shots_of_training() for actor in shot.actors if actor.spin]
    assert set(spinning) == {"square", "triangle"}


def test_a_film_keeps_its_cast_and_changes_background_camera_and_layout_at_every_cut():
    assert {len(film.shots) for film in films_of_training()} == {2, 3, 4}
    for film in films_of_training():
        casts = {tuple((o.shape, o.color, o.size, o.radius) for o, *_ in shot.actors) for shot in film.shots}
        assert len(casts) == 1
        assert len({o.shape for o, *_ in film.shots[0].actors}) == len(film.shots[0].actors)
        for a, b in zip(film.shots, film.shots[1:], strict=False):
            assert a.background != b.background
            assert a.camera.motion != b.camera.motion
            assert a.backdrop != b.backdrop
            assert a.actors[0].object.x != b.actors[0].object.x


def test_held_out_pairs_are_never_drawn_for_training():
    shots = shots_of_training() + [shot for film in films_of_training() for shot in film.shots]
    drawn = {(actor.object.shape, actor.object.color) for shot in shots for actor in shot.actors}
    assert drawn == set(REEL_36.seen)
    assert not drawn & set(REEL_36.held_out)


def test_a_world_of_one_background_one_camera_and_one_actor_can_be_drawn():
    world = ReelWorld(backgrounds=("white",), cameras=("zoom out",), max_actors=1, height=72, width=72, frames=5)
    film = video_sampling.sample_film(world, randomness.make_rng(0, 0), world.seen)
    assert {(shot.background, shot.camera.motion, len(shot.actors)) for shot in film.shots} == {
        ("white", "zoom out", 1)
    }


def test_actors_stay_in_a_picture_of_six_seconds():
    world = dataclasses.replace(REEL_36, frames=145)
    for i in range(20):
        shot = video_sampling.sample_shot(world, randomness.make_rng(0, i), world.seen)
        boxes = np.array([o.box for frame in (0, 72, 144) for o in video_world.objects_at(shot, frame)])
        assert boxes.min() > 0
        assert boxes[:, 3].max() < 1


def test_what_does_not_fit_is_said():
    crowded = dataclasses.replace(REEL_36, border=0.45)
    with pytest.raises(ValueError, match="find no room"):
        video_sampling.sample_still(crowded, randomness.make_rng(0, 0), crowded.seen)
