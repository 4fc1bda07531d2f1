import collections
import json
import os
import pickle
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from data_pipelines import captions, images, loader, scenes, sources
from nova_jax import types
from nova_jax.models.text import WordTextEncoder


class Numbers:
    """Sample i holds i; the indices in `bad` are corrupt."""

    def __init__(self, length: int, bad: tuple[int, ...] = (), delay: float = 0.0) -> None:
        self.length, self.bad, self.delay = length, set(bad), delay

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        if self.delay:
            time.sleep(self.delay * (index % 3))
        if index in self.bad:
            raise sources.CorruptRecord("numbers", index, "broken")
        return {"x": np.array([index], np.int32), "caption": f"caption {index}"}

    def fingerprint(self) -> str:
        return f"numbers {self.length}"


def add_noise(sample: dict, rng: np.random.Generator) -> dict:
    return sample | {"noise": rng.normal(size=3)}


def take(batches, count: int) -> list[dict[str, np.ndarray]]:
    return [next(batches) for _ in range(count)]


def assert_equal(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for one, other in zip(a, b, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_every_epoch_visits_each_sample_once_in_another_order():
    batches = loader.Loader(Numbers(30), batch_size=5, seed=3).batches()
    stream = np.concatenate([batch["x"][:, 0] for batch in take(batches, 18)])
    epochs = stream.reshape(3, 30)
    for epoch in epochs:
        assert sorted(epoch) == list(range(30))
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert list(epochs[0]) != list(range(30))


def test_without_shuffling_the_order_is_that_of_the_source():
    batches = loader.Loader(Numbers(7), batch_size=5, shuffle=False).batches()
    assert [batch["x"][:, 0].tolist() for batch in take(batches, 2)] == [[0, 1, 2, 3, 4], [5, 6, 0, 1, 2]]


def test_seeds_give_other_orders_and_other_random_numbers():
    a, b = (next(loader.Loader(Numbers(50), batch_size=8, seed=s, transform=add_noise).batches()) for s in (0, 1))
    assert not np.array_equal(a["x"], b["x"])
    assert not np.isin(a["noise"], b["noise"]).any()


def test_the_stream_resumes_to_the_bit_from_any_position():
    pipeline = loader.Loader(Numbers(23, bad=(4, 5)), batch_size=6, transform=add_noise, max_corrupt=2)
    whole = take(pipeline.batches(), 12)
    for start in (1, 2, 5, 9):
        batches = pipeline.batches(6 * start)
        assert_equal(take(batches, 12 - start), whole[start:])
        assert batches.position == 72
    flat = {name: np.concatenate([batch[name] for batch in whole]) for name in whole[0]}
    for start in (1, 7, 22, 23, 41):  # inside a batch too
        (batch,) = take(pipeline.batches(start), 1)
        assert_equal([batch], [{name: array[start : start + 6] for name, array in flat.items()}])


@pytest.mark.parametrize("shard_count", [1, 2, 4])
def test_any_number_of_data_shards_gives_the_same_global_batches(shard_count):
    pipeline = loader.Loader(Numbers(23, bad=(4,)), batch_size=8, transform=add_noise, max_corrupt=1)
    whole = take(pipeline.batches(16), 6)
    shards = [take(pipeline.batches(16, shard_index=i, shard_count=shard_count), 6) for i in range(shard_count)]
    joined = [{name: np.concatenate([shard[step][name] for shard in shards]) for name in whole[0]} for step in range(6)]
    assert_equal(joined, whole)


@pytest.mark.parametrize(("threads", "prefetch"), [(1, 0), (3, 1), (16, 4)])
def test_threads_and_prefetching_change_nothing(threads, prefetch):
    source = Numbers(23, delay=0.0005)
    reference = take(loader.Loader(source, batch_size=7, transform=add_noise).batches(), 5)
    pipeline = loader.Loader(source, batch_size=7, transform=add_noise, threads=threads, prefetch=prefetch)
    assert_equal(take(pipeline.batches(), 5), reference)


def test_reading_ahead_is_bounded():
    read = collections.Counter()

    def count(sample, rng):
        read["samples"] += 1
        return sample

    batches = loader.Loader(Numbers(1000), batch_size=10, transform=count, prefetch=2).batches()
    next(batches)
    time.sleep(0.1)
    assert read["samples"] <= 10 * 4
    batches.close()


def test_the_position_counts_what_was_handed_out_not_what_was_read_ahead():
    batches = loader.Loader(Numbers(100), batch_size=10, prefetch=4).batches(30)
    assert batches.position == 30
    next(batches)
    assert batches.position == 40


def test_corrupt_records_are_replaced_reported_and_listed(tmp_path, caplog):
    quarantine = tmp_path / "lists" / "quarantine.jsonl"
    source = Numbers(20, bad=(3, 4, 11))
    pipeline = loader.Loader(source, batch_size=5, max_corrupt=3, shuffle=False, quarantine=str(quarantine))
    batches = pipeline.batches()
    stream = np.concatenate([batch["x"][:, 0] for batch in take(batches, 8)])
    expected = [0, 1, 2, 5, 5, 5, 6, 7, 8, 9, 10, 12, 12, *range(13, 20)]  # the next readable one
    assert stream.tolist() == expected * 2
    assert sorted(batches.corrupt) == [3, 4, 11]
    listed = [json.loads(line) for line in quarantine.read_text().splitlines()]
    assert [(entry["index"], entry["shard"], entry["key"]) for entry in listed] == [
        (3, "numbers", 3),
        (4, "numbers", 4),
        (11, "numbers", 11),
    ]
    assert "sample 11, numbers, record 11: broken" in caplog.text
    take(pipeline.batches(), 8)
    assert len(quarantine.read_text().splitlines()) == 3  # known ones are not listed again


def test_more_corrupt_records_than_allowed_stop_the_run_with_a_list():
    batches = loader.Loader(Numbers(20, bad=(3, 4, 11)), batch_size=5, max_corrupt=2, shuffle=False).batches()
    take(batches, 2)
    with pytest.raises(loader.TooManyCorruptRecords) as caught:
        next(batches)
    for word in ("3 corrupt records", "max_corrupt=2", "sample 3", "sample 4", "sample 11", "repair"):
        assert word in str(caught.value)
    assert batches.position == 10
    with pytest.raises(loader.TooManyCorruptRecords, match="1 corrupt"):
        next(loader.Loader(Numbers(20, bad=tuple(range(20))), batch_size=1, max_corrupt=0).batches())
    with pytest.raises(loader.TooManyCorruptRecords, match="20 corrupt"):
        next(loader.Loader(Numbers(20, bad=tuple(range(20))), batch_size=1, max_corrupt=100).batches())


def test_the_quarantine_of_an_interrupted_run_counts_against_the_budget(tmp_path):
    quarantine = tmp_path / "quarantine.jsonl"
    quarantine.write_text('{"index": 3, "shard": "numbers", "key": 3, "reason": "broken"}\n{"index": 19, "sh')
    source = Numbers(20, bad=(3, 11))
    pipeline = loader.Loader(source, batch_size=5, max_corrupt=1, shuffle=False, quarantine=str(quarantine))
    with pytest.raises(loader.TooManyCorruptRecords, match=r"1 more in .*quarantine"):
        take(pipeline.batches(10), 1)


def test_what_cannot_be_read_is_left_out_of_what_a_model_is_measured_on(caplog):
    source = Numbers(20, bad=(0, 3, 11))
    found = list(loader.readable(source, range(12), 3))
    assert [int(sample["x"][0]) for sample in found] == [1, 2, *range(4, 11)]
    assert "left out: sample 11, numbers, record 11: broken" in caplog.text
    with pytest.raises(loader.TooManyCorruptRecords, match=r"3 corrupt records beside 9 others, and max_corrupt=2"):
        list(loader.readable(source, range(20), 2))
    with pytest.raises(loader.TooManyCorruptRecords, match=r"1 corrupt records beside 0 others"):
        list(loader.readable(source, range(1), 5))
    assert list(loader.readable(source, range(0), 0)) == []
    assert isinstance(loader.TooManyCorruptRecords(), ValueError), "commands answer such errors with one sentence"


def test_half_a_character_in_a_caption_of_any_source_is_one_corrupt_record(caplog):
    texts = [f"caption {i}" for i in range(4)]
    source = sources.Arrays(np.zeros((4, 1, 2, 2, 4)), [*texts[:2], "half \ud83d", "\ufeffcaption 3"])
    encode = captions.Tokenize(WordTextEncoder(length=8, width=8, depth=1, num_heads=2))
    pipeline = loader.Loader(source, batch_size=4, shuffle=False, max_corrupt=1, batch_transform=encode)
    expected = encode({"caption": np.array([*texts[:2], texts[3], texts[3]])})
    np.testing.assert_array_equal(next(pipeline.batches())["text_ids"], expected["text_ids"])
    assert "sample 2, Arrays, record 2: the caption is not Unicode" in caplog.text
    assert [sample["caption"] for sample in loader.readable(source, range(4), 1)] == [*texts[:2], texts[3]]


def test_a_fraction_of_the_source_may_be_corrupt():
    assert loader.Loader(Numbers(5000), batch_size=2, max_corrupt=0.001).budget == 5
    assert loader.Loader(Numbers(500), batch_size=2).budget == 0
    assert loader.Loader(Numbers(500), batch_size=2, max_corrupt=7).budget == 7


def test_other_errors_are_raised_with_their_position_and_lose_nothing():
    fail = [True]

    def flaky(sample, rng):
        if sample["x"][0] == 7 and fail.pop():
            raise OSError("disk on fire")
        return sample

    batches = loader.Loader(Numbers(20), batch_size=5, transform=flaky, shuffle=False).batches()
    next(batches)
    with pytest.raises(OSError, match="disk on fire") as caught:
        next(batches)
    assert caught.value.__notes__ == ["while reading sample 7 of Numbers, position 7"]
    assert batches.position == 5


def test_samples_of_different_form_are_an_error_that_names_them():
    shapes = [{"x": np.zeros((1, 4, 4, 3), np.uint8)}, {"x": np.zeros((1, 4, 5, 3), np.uint8)}]
    with pytest.raises(ValueError, match=r"x is uint8 \(1, 4, 4, 3\) in sample 8 .* uint8 \(1, 4, 5, 3\) in sample 9"):
        loader.collate(shapes, 8)
    with pytest.raises(ValueError, match="float32"):
        loader.collate([{"x": np.zeros(3, np.uint8)}, {"x": np.zeros(3, np.float32)}])
    with pytest.raises(ValueError, match="must hold the same entries"):
        loader.collate([{"x": 1}, {"y": 1}])


def test_texts_and_numbers_are_collated_to_arrays():
    batch = loader.collate([{"caption": "a", "n": 1}, {"caption": "long one", "n": 2}])
    assert batch["caption"].tolist() == ["a", "long one"]
    assert batch["n"].tolist() == [1, 2]


def test_unusable_arguments_are_refused_in_one_sentence():
    source = Numbers(10)
    for arguments in ({"batch_size": 0}, {"batch_size": 2, "threads": 0}, {"batch_size": 2, "seed": -1}):
        with pytest.raises(ValueError, match="must"):
            loader.Loader(source, **arguments)
    with pytest.raises(ValueError, match="fraction"):
        loader.Loader(source, batch_size=2, max_corrupt=1.5)
    with pytest.raises(ValueError, match="must divide the batch"):
        loader.Loader(source, batch_size=6).batches(shard_index=0, shard_count=4)
    with pytest.raises(ValueError, match="below the count"):
        loader.Loader(source, batch_size=6).batches(shard_index=2, shard_count=2)
    with pytest.raises(ValueError, match="counts samples"):
        loader.Loader(source, batch_size=6).batches(-1)


def test_a_drifted_dataset_is_refused_on_resume():
    stored = loader.Loader(Numbers(10), batch_size=2).fingerprint()
    loader.Loader(Numbers(10), batch_size=5, threads=1).check(stored)  # neither decides which sample comes where
    for drifted in (
        loader.Loader(Numbers(11), batch_size=2),
        loader.Loader(Numbers(10), batch_size=2, seed=1),
        loader.Loader(Numbers(10), batch_size=2, shuffle=False),
    ):
        with pytest.raises(sources.DatasetError, match="changed since the position was stored"):
            drifted.check(stored)


def test_a_loader_pickles_after_use():
    pipeline = loader.Loader(sources.Arrays(np.arange(24.0).reshape(12, 2)), batch_size=4)
    expected = take(pipeline.batches(), 4)
    assert_equal(take(pickle.loads(pickle.dumps(pipeline)).batches(), 4), expected)


WORKER = """
import sys
import jax
import numpy as np
from jax.experimental import multihost_utils
from data_pipelines import loader, sources
from nova_jax.parallel import distributed, mesh
data, context, process, port = map(int, sys.argv[1:])
distributed.initialize(f"localhost:{port}", 2, process)
sharding = mesh.batch_sharding(mesh.MeshConfig(data=data, context=context).make())
index, count = distributed.data_shard(sharding, 8)
pipeline = loader.Loader(sources.Arrays(np.arange(40).reshape(20, 2)), batch_size=8)
batches = pipeline.batches(24, shard_index=index, shard_count=count)
for _ in range(3):
    x = distributed.global_batch(loader.to_batch(next(batches)), sharding, 8).x0
    print(multihost_utils.process_allgather(x, tiled=True).tolist(), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("data", "context"), [(4, 1), (2, 2), (1, 4)])  # the last: both processes load all rows
def test_two_processes_assemble_the_batches_of_one(data, context):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": os.getcwd()}
    commands = [[sys.executable, "-c", WORKER, *map(str, (data, context, i, port))] for i in range(2)]
    workers = [subprocess.Popen(c, env=os.environ | flags, stdout=subprocess.PIPE, text=True) for c in commands]
    printed = [worker.communicate(timeout=120)[0].splitlines() for worker in workers]
    pipeline = loader.Loader(sources.Arrays(np.arange(40).reshape(20, 2)), batch_size=8)
    expected = [batch["latents"].tolist() for batch in take(pipeline.batches(24), 3)]
    for lines in printed:
        assert [json.loads(line) for line in lines if line.startswith("[[")] == expected  # Gloo prints too


def test_named_arrays_become_a_training_batch():
    mask = np.ones((2, 4), bool)
    batch = loader.to_batch({"latents": np.zeros((2, 1, 4, 4, 16)), "text_mask": mask, "index": np.arange(2)})
    assert isinstance(batch, types.Batch)
    assert batch.cond.text_mask is mask
    assert batch.cond.text is None
    assert loader.to_batch({"pixels": np.ones(3)}).x0.sum() == 3
    with pytest.raises(ValueError, match="latents or pixels"):
        loader.to_batch({"caption": "a"})


def test_damaged_shards_stream_on_and_resume_to_the_bit(emoji_like, caplog):
    with open(emoji_like[0], "r+b") as file:  # an image, then everything after the fourth sample
        file.seek(512 + 100)
        file.write(b"damage")
        file.truncate(4 * 3 * 1024 - 100)
    pipeline = loader.Loader(
        sources.WebDataset(emoji_like, checksums=False),
        batch_size=4,
        transform=images.Transform(size=(4, 4), flip=True),
        max_corrupt=4,
    )
    batches = pipeline.batches()
    whole = take(batches, 10)
    assert {fault.shard for fault in batches.corrupt.values()} == {emoji_like[0]}
    assert any("cut short" in fault.reason for fault in batches.corrupt.values())
    assert_equal(take(pipeline.batches(12, shard_index=0), 7), whole[3:])
    halves = [take(pipeline.batches(12, shard_index=i, shard_count=2), 7) for i in range(2)]
    joined = [{name: np.concatenate([half[i][name] for half in halves]) for name in whole[0]} for i in range(7)]
    assert_equal(joined, whole[3:])


def test_the_scenes_world_loads_like_any_source():
    tokenize = captions.Tokenize(WordTextEncoder(length=20))
    pipeline = loader.Loader(
        scenes.Scenes(length=64), batch_size=4, transform=images.Transform(), batch_transform=tokenize
    )
    batch = next(pipeline.batches())
    assert batch["pixels"].shape[0] == 4
    assert batch["text_ids"].shape == (4, 20, 12)
    assert len(pipeline.fingerprint()) == 64


def test_real_emoji_resume_to_the_bit(shared):
    source = sources.WebDataset(str(shared / "data" / "emoji.tar"))
    pipeline = loader.Loader(source, batch_size=16, transform=images.Transform(size=(32, 32), flip=True))
    whole = take(pipeline.batches(1840), 4)  # over the end of an epoch
    assert_equal(take(pipeline.batches(1840 + 32), 2), whole[2:])
