import dataclasses

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.scenes import outlines, palette, parser, randomness
from data_pipelines.scenes.video import render as video_render
from data_pipelines.scenes.video import sampling as video_sampling
from data_pipelines.scenes.video import world as video_world
from data_pipelines.scenes.video.world import REEL_36, REEL_72, Actor, Camera, Shot
from data_pipelines.scenes.world import Object

BALL = Object("circle", "red", "small", 0.9, 0.5, 0.14)
SIZE = (36, 64)


def of(*actors, camera=None, frames=25, background="white"):
    return Shot(actors, background, camera or Camera(), frames, backdrop=5)


def agrees(truth, found, world):
    """Every object read once by shape and colour, within 0.7 pixels."""
    if sorted(d[:2] for d in truth) != sorted(d[:2] for d in found):
        return False
    near = 0.7 / world.height
    return all(any(t[:2] == d[:2] and np.hypot(t.x - d.x, t.y - d.y) < near for d in found) for t in truth)


def read_rate(world, shots, frames):
    right = []
    for shot in shots:
        pictures = video_render.render_frames(shot, frames, (world.height, world.width))
        right += [
            agrees(video_world.truth(shot, k), parser.parse(picture, world), world)
            for k, picture in zip(frames, pictures, strict=True)
        ]
    return np.mean(right)


def sample(world, count, cameras):
    shots = []
    for i in range(10_000):
        shot = video_sampling.sample_shot(world, randomness.make_rng(3, i), world.seen)
        shots += [shot] if cameras(shot.camera.motion) else []
        if len(shots) == count:
            return shots
    raise AssertionError("too few shots")


def test_the_parser_reads_the_truth_under_a_static_camera():
    shots = sample(REEL_36, 20, lambda motion: motion == "static")
    assert read_rate(REEL_36, shots, (0, 11, 24)) == 1.0


def test_the_parser_reads_the_truth_under_a_moving_camera():
    shots = sample(REEL_36, 30, lambda motion: motion != "static")
    assert read_rate(REEL_36, shots, (24,)) >= 0.97


def test_sizes_are_read_under_a_static_camera():
    for shot in sample(REEL_36, 8, lambda motion: motion == "static"):
        found = parser.parse(video_render.render_frames(shot, [0], SIZE)[0], REEL_36)
        assert sorted(d.size for d in found) == sorted(a.object.size for a in shot.actors)


def test_some_frames_are_those_of_the_whole_shot():
    shot = of(Actor(BALL, dx=0.3, spin=90.0), camera=Camera("dolly in", 0.3))
    np.testing.assert_array_equal(
        video_render.render_frames(shot, [3, 20], SIZE), video_render.render_shot(shot, SIZE)[[3, 20]]
    )


def test_a_static_shot_of_a_still_actor_shows_one_picture():
    pictures = video_render.render_shot(of(Actor(BALL)), SIZE)
    assert pictures.shape == (25, 36, 64, 3)
    assert (pictures == pictures[:1]).all()


@pytest.mark.parametrize("background", palette.BACKGROUNDS)
def test_marks_are_a_few_pixels_of_a_shade_that_is_no_object(background):
    picture = video_render.render_frames(of(background=background), [0], SIZE)[0]
    off = np.abs(picture.astype(int) - palette.rgb(background)).max(axis=-1)
    blobs, count = ndimage.label(off > 10)
    areas = np.bincount(blobs.ravel())[1:]
    assert 12 <= count <= 24
    assert 4 <= np.median(areas) <= 14
    assert 25 <= off.max() <= 40
    assert parser.parse(picture, REEL_36) == []
    assert parser.background(picture, REEL_36) == background


@pytest.mark.parametrize("motion", video_world.CAMERA_MOTIONS)
def test_a_moving_camera_always_has_marks_in_view(motion):
    camera = Camera(motion, video_world.AMOUNTS[video_world.CAMERA_MOTIONS[motion]][1])
    last = video_render.shade(of(camera=camera), [24], (72, 128))[0]
    for part in (last[:, :32], last[:, -32:], last[:24], last[-24:]):
        assert (part > 20).sum() >= 12


def moved(first, last):
    """By how many pixels to the right and down the second of two images is moved, from their cross-correlation."""
    spectra = [np.fft.rfft2(p - p.mean(), (2 * p.shape[0], 2 * p.shape[1])) for p in (first, last)]
    product = np.fft.irfft2(spectra[1] * spectra[0].conj(), (2 * first.shape[0], 2 * first.shape[1]))
    y, x = np.unravel_index(product.argmax(), product.shape)
    return tuple(int(d - 2 * n if d > n else d) for d, n in ((x, first.shape[1]), (y, first.shape[0])))


@pytest.mark.parametrize(
    ("motion", "amount", "expected"),
    [
        ("pan left", 0.25, (18, 0)),
        ("tilt down", 0.25, (0, -18)),
        ("truck left", 0.5, (12, 0)),
        ("pedestal down", 0.5, (0, -12)),
    ],
)
def test_the_backdrop_moves_as_much_as_the_actor_or_a_third_of_it(motion, amount, expected):
    shot = of(Actor(BALL), camera=Camera(motion, amount))
    first, last = video_render.shade(shot, [0, 24], (72, 128))
    np.testing.assert_allclose(moved(first, last), expected, atol=1)
    o = video_world.objects_at(shot, 24)[0]
    near = np.array([o.x - BALL.x, o.y - BALL.y]) * 72
    np.testing.assert_allclose(near, np.array(expected) * (3 if motion.split()[0] in ("truck", "pedestal") else 1))


def test_zoom_makes_marks_as_much_larger_as_actors_and_dolly_does_not():
    for motion, amount, grows in (("zoom in", 1.4, True), ("dolly in", 0.3, False)):
        shot = of(Actor(BALL), camera=Camera(motion, amount))
        first, last = (video_render.shade(shot, [k], (144, 256))[0] > 5 for k in (0, 24))
        per_mark = [np.median(np.bincount(ndimage.label(p)[0].ravel())[1:]) for p in (first, last)]
        actor = video_world.objects_at(shot, 24)[0].radius / BALL.radius
        assert actor > 1.35
        assert (per_mark[1] / per_mark[0] > 1.6) == grows


def test_a_near_actor_hides_a_far_one():
    near, far = Actor(BALL), Actor(BALL._replace(color="blue", radius=0.2), depth=1.3)
    picture = video_render.render_frames(of(near, far), [0], SIZE)[0]
    assert tuple(picture[18, 32]) == palette.rgb("red")


def test_all_shapes_are_read_at_any_turn_at_72_pixels():
    world = dataclasses.replace(REEL_72, shapes=tuple(outlines.SHAPES))
    for shape in world.shapes:
        for turn in (0, 40, 165):
            o = Object(shape, "red", "small", 0.9, 0.5, 0.14, turn)
            (found,) = parser.parse(video_render.render_frames(of(Actor(o)), [0], (72, 128))[0], world)
            assert found.shape == shape
