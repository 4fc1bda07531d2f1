import dataclasses

import numpy as np
import pytest

from data_pipelines import datasets
from data_pipelines.scenes.video.source import Reels
from data_pipelines.scenes.video.world import ReelWorld
from data_pipelines.sources import base
from data_pipelines.sources.memory import InMemory

CLIPS = Reels(ReelWorld(height=32, width=32, frames=1), length=6)


@pytest.mark.parametrize("processes", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_held_is_what_the_source_gives(processes):
    held = InMemory(CLIPS, processes)
    assert len(held) == 6
    for i in range(6):
        assert held[i]["caption"] == CLIPS[i]["caption"]
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

    held = InMemory(Partly((0, 1, 2)))
    with pytest.raises(base.CorruptRecord, match="record 0: nothing"):
        held[0]
    assert [held[i]["pixels"].max() for i in (1, 2)] == [1, 2]
    batch = next(datasets.Pixels(source=held, max_corrupt=1).batches(0, 6)).x0
    assert batch.min() == np.float32(1 / 127.5 - 1), "no black image stands for the corrupt one"
    with pytest.raises(base.DatasetError, match="no sample of 1 can be read"):
        _ = InMemory(Partly((0,))).samples


def test_samples_of_several_shapes_are_refused():
    ragged = [{"pixels": np.zeros((1, 4, side, 3), np.uint8)} for side in (4, 5)]
    with pytest.raises(base.DatasetError, match="sample 1 holds other arrays"):
        _ = InMemory(Listed(ragged)).samples


class Listed(list):
    def fingerprint(self):
        return "listed"

    __hash__ = object.__hash__


def test_samples_in_memory_are_known_by_their_source():
    """Saved runs know those that this process made by the source's own name, and the others by another one."""
    assert base.fingerprint(InMemory(CLIPS)) == base.fingerprint(CLIPS)
    assert base.fingerprint(InMemory(CLIPS, 1)) == base.fingerprint(InMemory(CLIPS, None)) != base.fingerprint(CLIPS)
