import numpy as np
import pytest

from data_pipelines.scenes.reel_source import Reels
from data_pipelines.scenes.reel_world import ReelWorld
from data_pipelines.sources import base
from data_pipelines.sources.held import Held

CLIPS = Reels(ReelWorld(height=32, width=32, frames=1), length=6)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_held_is_what_the_source_gives(processes):
    held = Held(CLIPS, processes)
    assert len(held) == 6
    for i in range(6):
        assert set(held[i]) == {"pixels"}
        np.testing.assert_array_equal(held[i]["pixels"], CLIPS[i]["pixels"])


def test_held_samples_are_known_by_their_source():
    assert base.fingerprint(Held(CLIPS, 1)) == base.fingerprint(Held(CLIPS, 2))
    assert base.fingerprint(Held(CLIPS)) != base.fingerprint(CLIPS)
