import pickle

import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.scenes import clips, parser, render, world
from data_pipelines.scenes.clips import Clip, Clips, Motion
from data_pipelines.scenes.world import Object, Scene


def test_an_element_depends_on_seed_and_index_alone():
    a, b = Clips(seed=2), pickle.loads(pickle.dumps(Clips(seed=2, length=10)))
    for i in (7, 0, 3):
        assert a[i]["caption"] == b[i]["caption"]
        np.testing.assert_array_equal(a[i]["pixels"], b[i]["pixels"])


def test_frames_are_the_pictures_of_their_scenes():
    source = Clips(frames=5)
    pixels, clip = source[1]["pixels"], source.clip(1)
    assert pixels.shape == (5, 32, 32, 3)
    for k in range(5):
        np.testing.assert_array_equal(pixels[k], render.render(clips.scene_at(clip, k), 32))


def test_objects_move_at_constant_velocity_over_the_declared_way():
    source = Clips(frames=9)
    for i in range(30):
        clip = source.clip(i)
        for k, motion in enumerate(clip.motions):
            path = np.array([clips.scene_at(clip, t).objects[k][3:5] for t in range(9)])
            steps = np.tile([motion.dx / 8, motion.dy / 8], (8, 1))
            np.testing.assert_allclose(np.diff(path, axis=0), steps, atol=1e-12)
            if motion.speed is not None:
                low, high = clips.SPEEDS[motion.speed]
                assert low <= np.hypot(motion.dx, motion.dy) <= high


def test_objects_stay_inside_and_apart_in_every_frame():
    source = Clips(scenes.VARIED_64, frames=13)
    for i in range(30):
        clip = source.clip(i)
        assert all(source.world.fits(clips.scene_at(clip, k).objects) for k in range(13))


def test_a_clip_of_one_frame_is_a_picture():
    source = Clips(frames=1)
    np.testing.assert_array_equal(source[0]["pixels"][0], render.render(source.clip(0).first, 32))


@pytest.mark.parametrize("of", [scenes.VARIED_32, scenes.VARIED_64], ids=lambda w: str(w.image_size))
def test_motions_are_read_back_from_the_pixels(of):
    source = Clips(of, seed=1)
    for i in range(15):
        clip = source.clip(i)
        tracks = clips.track([parser.parse(frame, of) for frame in source[i]["pixels"]])
        assert all(t.frames == list(range(9)) for t in tracks)
        read = [(t.shape, t.color, *clips.read_motion(t, 9)) for t in tracks]
        for o, motion in zip(clip.first.objects, clip.motions, strict=True):
            (found,) = [t for t in read if t[:4] == (*o[:2], *motion[:2]) and np.allclose(t[4:], motion[2:], atol=0.01)]
            read.remove(found)
        assert not read


def test_a_vanished_object_is_tracked_as_long_as_it_is_seen():
    o = Object("circle", "red", "small", 0.3, 0.3, 0.14)
    seen, gone = world.truth(Scene((o,), "white")), []
    (followed,) = clips.track([seen, seen, gone, seen])
    assert followed.frames == [0, 1, 3]
    (lost,) = clips.track([seen, gone])
    assert clips.read_motion(lost, 2) == Motion()


def test_captions_say_the_true_direction_and_speed():
    o = Object("circle", "red", "small", 0.5, 0.5, 0.14)
    words = {"left": "left", "right": "right", "up": "up", "down": "down"}
    rng = np.random.default_rng(0)
    for direction, word in words.items():
        for speed, adverb in (("slow", "slowly"), ("fast", "quickly")):
            clip = Clip(Scene((o,), "white"), (Motion(direction, speed, 0.1, 0.0),), 5)
            texts = {clips.caption(clip, rng) for _ in range(50)}
            assert all(word in text for text in texts)
            assert any(adverb in text for text in texts)
            assert not any(other in text for other in {"slowly", "quickly"} - {adverb} for text in texts)
            assert not any(other in text for other in set(words.values()) - {word} for text in texts)
    still = Clip(Scene((o,), "white"), (Motion(),), 5)
    assert all("standing still" in clips.caption(still, rng) for _ in range(20))


def test_captions_stay_within_their_bound():
    rng = np.random.default_rng(0)
    a = Object("triangle", "orange", "small", 0.2, 0.5, 0.14)
    b = Object("triangle", "yellow", "large", 0.7, 0.5, 0.19)
    worst = Clip(Scene((a, b), "white"), (Motion("right", "fast", 0.3), Motion("right", "fast", 0.3)), 9)
    assert max(len(clips.caption(worst, rng)) for _ in range(100)) <= clips.MAX_LENGTH
