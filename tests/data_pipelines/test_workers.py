"""Several processes make the batches that one makes."""

import dataclasses
import itertools

import numpy as np
import pytest

from data_pipelines import datasets, encoding, workers
from data_pipelines.mixture import Mixture
from data_pipelines.scenes import source
from data_pipelines.scenes.editing.source import CanvasScenes
from data_pipelines.scenes.world import CANVAS_32


def rows(data, start, count, *shard):
    return [np.asarray(batch.x0) for batch in itertools.islice(data.batches(start, 8, *shard), count)]


@pytest.mark.long
def test_batches_do_not_depend_on_the_number_of_processes():
    alone = datasets.Pixels(source=source.Scenes(length=64))
    several = datasets.Pixels(source=source.Scenes(length=64), processes=2)
    assert several.fingerprint() == alone.fingerprint()
    np.testing.assert_array_equal(rows(several, 16, 3), rows(alone, 16, 3))
    np.testing.assert_array_equal(rows(several, 0, 2, 1, 2), rows(alone, 0, 2, 1, 2))


@pytest.mark.long
def test_a_mixture_is_made_by_processes_too():
    parts = tuple((datasets.Pixels(source=source.Scenes(seed=seed, length=64)), 1) for seed in (1, 2))
    several = Mixture(parts=parts, processes=2)
    np.testing.assert_array_equal(rows(several, 8, 4), rows(Mixture(parts=parts), 8, 4))


@pytest.mark.long
def test_as_many_processes_work_as_divide_the_rows():
    alone = datasets.Pixels(source=source.Scenes(length=64))
    several = dataclasses.replace(alone, processes=3)
    np.testing.assert_array_equal(rows(several, 0, 1), rows(alone, 0, 1))
    with pytest.raises(ValueError, match="8 rows do not divide over 3 data shards"):
        several.batches(0, 8, 0, 3)


class Failing(source.Scenes):
    def __getitem__(self, index):
        raise KeyError("broken")


def test_the_failure_of_a_process_is_an_error(capfd):
    data = datasets.Pixels(source=Failing(length=64), processes=1)
    with pytest.raises(RuntimeError, match="standard error"):
        next(data.batches(0, 8))
    assert "broken" in capfd.readouterr().err


@pytest.mark.long
def test_processes_encode_what_threads_encode(tmp_path):
    scenes = CanvasScenes(CANVAS_32, "matte", length=20)

    def encode(batch):
        return {"mean": batch["pixels"].mean(axis=(1, 2, 3, 4))}

    for name, options in (("threads", {"threads": 2}), ("processes", {"processes": 2})):
        encoding.encode_source(
            scenes, encode, tmp_path / name, model="m", options=encoding.Options(batch_size=8, **options)
        )
    threads, processes = (encoding.LatentCache(str(tmp_path / name)) for name in ("threads", "processes"))
    assert len(threads) == len(processes) == 20
    assert threads.fingerprint() == processes.fingerprint()


def test_fewer_than_no_processes_are_refused():
    with pytest.raises(ValueError, match=r"processes is -1; it must be a whole number of 1 or more"):
        workers.join(None, -1, 0, 8, 0, 1)
