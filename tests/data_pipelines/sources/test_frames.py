import numpy as np

from data_pipelines import datasets
from data_pipelines.scenes.video.source import Reels
from data_pipelines.scenes.video.world import ReelWorld
from data_pipelines.sources import base
from data_pipelines.sources.frames import Frames

WORLD = ReelWorld(height=32, width=32, frames=5)
CLIPS = Reels(WORLD, length=20)


def test_frames_come_from_every_position_of_their_clips():
    frames = Frames(CLIPS)
    assert len(frames) == 20
    for i in range(5):
        np.testing.assert_array_equal(frames[i]["pixels"][0], CLIPS[i]["pixels"][7 * i % 5])
    assert {7 * i % 5 for i in range(5)} == set(range(5))


def test_frames_are_known_by_their_clips():
    assert Frames(CLIPS).fingerprint() == Frames(Reels(WORLD, length=20)).fingerprint()
    assert base.fingerprint(Frames(CLIPS)) != base.fingerprint(Frames(Reels(WORLD, length=20, seed=1)))


def test_a_stream_of_pixels_holds_whole_clips():
    stream = datasets.Pixels(source=CLIPS, size=(12, 16))
    assert stream.describe()["pixel_shape"] == [5, 12, 16, 3]
    assert next(stream.batches(0, 2)).x0.shape == (2, 5, 12, 16, 3)
