"""The motion of a backdrop: exact on marks that are moved by known similarities, and none where nothing is seen."""

import numpy as np
import pytest
from scipy import ndimage

from data_pipelines.scenes.video import camera_motion
from data_pipelines.scenes.video.camera_motion import Drift

FRAMES, HEIGHT, WIDTH = 9, 36, 64
DRIFTS = [
    Drift(0.0, 0.0, 0.0, 0.0),
    Drift(0.2, 0.0, 0.0, 0.0),
    Drift(0.0, -0.15, 0.0, 0.0),
    Drift(0.0, 0.0, 0.2, 0.0),
    Drift(0.0, 0.0, -0.2, 0.0),
    Drift(0.0, 0.0, 0.0, 20.0),
    Drift(0.05, 0.0, 0.0, -15.0),
]


def marks(drift, strength=40.0):
    """Blurred marks that a camera moves: pixels (f, h, w, 3)."""
    texture = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(128, 128)), 2, mode="wrap")
    texture *= strength / texture.std() / 4
    y, x = np.meshgrid(np.arange(HEIGHT) - (HEIGHT - 1) / 2, np.arange(WIDTH) - (WIDTH - 1) / 2, indexing="ij")
    frames = []
    for share in np.linspace(0, 1, FRAMES):
        across, down = x - share * drift.x * HEIGHT, y - share * drift.y * HEIGHT
        turn, scale = np.radians(share * drift.turn), np.exp(-share * drift.growth)
        from_x = scale * (np.cos(turn) * across + np.sin(turn) * down)
        from_y = scale * (np.cos(turn) * down - np.sin(turn) * across)
        frames.append(128 + ndimage.map_coordinates(texture, [from_y + 64, from_x + 64], order=3))
    return np.repeat(np.clip(np.rint(frames), 0, 255).astype(np.uint8)[..., None], 3, axis=-1)


@pytest.mark.parametrize("drift", DRIFTS, ids=str)
def test_a_known_motion_of_the_marks_is_found(drift):
    found = camera_motion.fit(marks(drift), np.zeros((FRAMES, HEIGHT, WIDTH), bool))
    np.testing.assert_allclose(found[:3], drift[:3], atol=0.01)
    assert found.turn == pytest.approx(drift.turn, abs=0.3)


def test_what_is_covered_does_not_count():
    drift, covered = Drift(0.2, 0.0, 0.0, 0.0), np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    pixels = marks(drift)
    pixels[:, 8:28, 20:40] = np.random.default_rng(1).integers(0, 256, 3)  # an actor that stands still
    covered[:, 6:30, 18:42] = True
    np.testing.assert_allclose(camera_motion.fit(pixels, covered)[:3], drift[:3], atol=0.01)


def test_where_nothing_is_to_be_seen_there_is_no_motion():
    pixels, covered = marks(DRIFTS[1]), np.zeros((FRAMES, HEIGHT, WIDTH), bool)
    assert camera_motion.fit(np.full_like(pixels, 200), covered) is None
    assert camera_motion.fit(pixels[:1], covered[:1]) is None
    assert camera_motion.fit(pixels, ~covered) is None


def test_ways_are_those_of_a_point_half_a_height_from_the_middle():
    assert Drift(0.3, 0.4, 0.0, 0.0).way == pytest.approx(0.5)
    assert Drift(0.0, 0.0, -0.2, 0.0).way == pytest.approx(0.1)
    assert Drift(0.0, 0.0, 0.0, 180 / np.pi).way == pytest.approx(0.5)
