import dataclasses

import numpy as np
import pytest

from data_pipelines import datasets
from data_pipelines.scenes.video.source import Reels
from data_pipelines.scenes.video.world import ReelWorld
from data_pipelines.sources import base
from data_pipelines.sources.memory import Held

CLIPS = Reels(ReelWorld(height=32, width=32, frames=1), length=6)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_held_is_what_the_source_gives(processes):
    held = Held(CLIPS, processes)
    assert len(held) == 6
    for i in range(6):
        assert set(held[i]) == {"pixels"}
        np.testing.assert_array_equal(held[i]["pixels"], CLIPS[i]["pixels"])


def test_a_corrupt_sample_is_one_record_of_those_held():
    @dataclasses.dataclass(frozen=True)
    class Partly:
        levels: tuple[int, ...]

        def __len__(self):
            return len(self.levels)

        def __getitem__(self, index):
            if not self.levels[index]:
                raise base.CorruptRecord("list", index, "nothing")
            return {"pixels": np.full((1, 4, 4, 3), self.levels[index], np.uint8)}

    held = Held(Partly((0, 1, 2)), 1)
    with pytest.raises(base.CorruptRecord, match="record 0: nothing"):
        held[0]
    assert [held[i]["pixels"].max() for i in (1, 2)] == [1, 2]
    batch = next(datasets.Pixels(source=held, max_corrupt=1).batches(0, 6)).x0
    assert batch.min() == np.float32(1 / 127.5 - 1), "no black picture stands for the corrupt one"
    with pytest.raises(base.DatasetError, match="no sample of 1 can be read"):
        _ = Held(Partly((0,)), 1).pixels


def test_held_samples_are_known_by_their_source():
    assert base.fingerprint(Held(CLIPS, 1)) == base.fingerprint(Held(CLIPS, 2))
    assert base.fingerprint(Held(CLIPS)) != base.fingerprint(CLIPS)
