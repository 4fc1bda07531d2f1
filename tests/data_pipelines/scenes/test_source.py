import pickle

import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.scenes import randomness, render, source


def test_an_element_depends_on_seed_and_index_alone():
    """Whatever was read before, however long the source is, in another copy of it."""
    a = scenes.Scenes(scenes.QUICKSTART, seed=1, length=100)
    b = pickle.loads(pickle.dumps(scenes.Scenes(scenes.QUICKSTART, seed=1, length=10)))
    forwards = [a[i] for i in range(10)]
    backwards = [b[i] for i in reversed(range(10))][::-1]
    for x, y in zip(forwards, backwards, strict=True):
        assert x["caption"] == y["caption"]
        np.testing.assert_array_equal(x["pixels"], y["pixels"])


def test_seeds_and_indices_give_unrelated_scenes():
    drawn = {scenes.Scenes(seed=seed).scene(i) for seed in range(10) for i in range(20)}
    assert len(drawn) == 200


def test_an_element_is_its_scene_drawn_in_one_frame():
    s = scenes.Scenes(scenes.SHAPES_64)
    assert s[4]["pixels"].shape == (1, 64, 64, 3)
    assert s[4]["pixels"].dtype == np.uint8
    np.testing.assert_array_equal(s[4]["pixels"][0], render.render(s.scene(4), 64))


def test_elements_can_be_read_by_numpy_indices():
    s = scenes.Scenes(length=5)
    assert s[np.int64(3)]["caption"] == s[3]["caption"]


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_outside_the_source_is_refused(index):
    with pytest.raises(IndexError, match="0 to 4"):
        scenes.Scenes(length=5)[index]


def test_held_out_pairs_have_a_source_of_their_own():
    of = scenes.World(held_out=(("circle", "red"), ("square", "blue")))
    held_out = scenes.Scenes(of, held_out=True, length=50)
    assert {o[:2] for i in range(50) for o in held_out.scene(i).objects} == set(of.held_out)


def test_streams_keep_their_meaning():
    """The first draws of stream (7, 3), made with numpy 2.4: a dataset named by its seed stays the same dataset."""
    assert randomness.make_rng(7, 3).random(2).tolist() == pytest.approx([0.4821286, 0.72413557], abs=1e-7)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_is_no_unsigned_number_is_refused(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}; it must be a whole number from 0 to"):
        source.Scenes(seed=seed)[0]
