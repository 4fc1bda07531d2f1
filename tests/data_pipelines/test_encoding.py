import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import encoding, images, loader, sources

OPTIONS = encoding.Options(batch_size=4, shard_size=5, transform=images.Transform())


def encode(batch: dict[str, np.ndarray]) -> dict:
    pixels = jnp.asarray(batch["pixels"])
    lengths = [[len(str(text))] for text in batch["caption"]]
    return {"latents": pixels[:, :, ::2, ::2].astype(jnp.bfloat16), "text": np.array(lengths, np.float32)}


@pytest.fixture
def source(emoji_like):
    return sources.WebDataset(emoji_like)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


def read_all(folder) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in sorted(os.listdir(folder))}


def test_latents_come_back_with_captions_and_original_indices(source, folder):
    assert encoding.encode_source(source, encode, folder, model="m", options=OPTIONS) == [0, 1, 2]
    latents = encoding.LatentCache(folder, model="m")
    assert len(latents) == 12
    for i in range(12):
        pixels = images.to_float(source[i]["pixels"])
        expected = encode({"pixels": pixels[None], "caption": np.array([source[i]["caption"]])})
        assert latents[i]["latents"].dtype == jnp.bfloat16
        np.testing.assert_array_equal(latents[i]["latents"], expected["latents"][0])
        np.testing.assert_array_equal(latents[i]["text"], expected["text"][0])
        assert (latents[i]["caption"], latents[i]["index"]) == (f"caption {i}", i)
    manifest = json.loads((folder / "00002-of-00003.json").read_text())
    assert (manifest["first"], manifest["count"], manifest["model"]) == (10, 2, "m")
    assert manifest["arrays"] == {"latents": ["bfloat16", [1, 4, 4, 3]], "text": ["float32", [1]]}
    latents.verify()


def test_the_encoder_always_sees_full_batches(source, folder):
    seen = []

    def watch(batch):
        seen.append(batch["pixels"].shape[0])
        return encode(batch)

    encoding.encode_source(source, watch, folder, model="m", options=OPTIONS)
    assert set(seen) == {4}
    assert len(seen) == 2 + 2 + 1


def test_encoding_twice_does_nothing_and_shards_are_the_same_bytes_in_any_order(source, folder, tmp_path):
    encoding.encode_source(source, encode, folder, model="m", options=OPTIONS)
    before = read_all(folder)
    assert encoding.encode_source(source, encode, folder, model="m", options=OPTIONS) == []
    assert read_all(folder) == before
    other = tmp_path / "other"
    for shards in ([2], [0, 2], range(1, 3, 2)):
        encoding.encode_source(source, encode, other, model="m", options=OPTIONS, shards=shards)
    assert read_all(other) == before
    with pytest.raises(ValueError, match="shard 3 does not exist"):
        encoding.encode_source(source, encode, other, model="m", options=OPTIONS, shards=[3])


def test_a_killed_run_continues_to_the_same_bytes(source, folder, tmp_path):
    script = textwrap.dedent(f"""
        import os, signal
        from data_pipelines import images, sources
        from data_pipelines import encoding
        calls = []
        def encode(batch):
            calls.append(1)
            if len(calls) == 4:  # in the middle of the second shard
                os.kill(os.getpid(), signal.SIGKILL)
            return {{"latents": batch["pixels"]}}
        source = sources.WebDataset({source.paths!r})
        options = encoding.Options(batch_size=4, shard_size=5, transform=images.Transform())
        encoding.encode_source(source, encode, {str(folder)!r}, model="m", options=options)
    """)
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "JAX_PLATFORMS": "cpu"}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(sources.DatasetError, match=r"lacks 2 of 3 shards \(1, 2\)"):
        len(encoding.LatentCache(folder))

    def identity(batch):
        return {"latents": batch["pixels"]}

    assert encoding.encode_source(source, identity, folder, model="m", options=OPTIONS) == [1, 2]
    encoding.encode_source(source, identity, tmp_path / "whole", model="m", options=OPTIONS)
    (left,) = folder.glob("*.partial")  # of the run that was killed
    left.unlink()
    assert read_all(folder) == read_all(tmp_path / "whole")


def test_two_runs_that_encode_at_once_do_not_disturb_each_other(source, folder, tmp_path):
    def interrupted(batch):
        encoding.encode_source(source, encode, folder, model="m", options=OPTIONS)  # another run does it all meanwhile
        return encode(batch)

    encoding.encode_source(source, interrupted, folder, model="m", options=OPTIONS)
    encoding.encode_source(source, encode, tmp_path / "whole", model="m", options=OPTIONS)
    assert read_all(folder) == read_all(tmp_path / "whole")


def test_what_a_killed_run_left_half_written_goes_and_what_is_being_written_stays(source, folder):
    folder.mkdir()
    old, new = folder / "00000-of-00003.array_record.aaaa.partial", folder / "00001-of-00003.array_record.bbbb.partial"
    for path in (old, new):
        path.write_bytes(b"half")
    an_hour_ago = time.time() - encoding.STALE_SECONDS - 1
    os.utime(old, (an_hour_ago, an_hour_ago))
    encoding.encode_source(source, encode, folder, model="m", options=OPTIONS)
    assert [path.name for path in folder.glob("*.partial")] == [new.name]


def test_another_model_source_or_transform_is_refused(source, folder):
    encoding.encode_source(source, encode, folder, model="m", options=OPTIONS)
    with pytest.raises(sources.DatasetError, match=r"made with another model \(m, now n\)"):
        encoding.encode_source(source, encode, folder, model="n", options=OPTIONS)
    with pytest.raises(sources.DatasetError, match="another source"):
        encoding.encode_source(sources.WebDataset(source.paths[::-1]), encode, folder, model="m", options=OPTIONS)
    flipped = encoding.Options(batch_size=4, shard_size=5, transform=images.Transform(flip=True))
    with pytest.raises(sources.DatasetError, match="another transform"):
        encoding.encode_source(source, encode, folder, model="m", options=flipped)
    with pytest.raises(sources.DatasetError, match="another shard_size"):
        encoding.encode_source(
            source, encode, folder, model="m", options=encoding.Options(transform=images.Transform())
        )
    with pytest.raises(sources.DatasetError, match="another model"):
        len(encoding.LatentCache(folder, model="n"))
    with pytest.raises(sources.DatasetError, match="holds no latent cache"):
        len(encoding.LatentCache(folder / "nowhere"))


def test_corrupt_records_are_left_out_and_listed(source, folder):
    with open(source.paths[0], "r+b") as file:
        file.seek(512)
        file.write(b"damage")
    encoding.encode_source(source, encode, folder, model="m", options=OPTIONS)
    latents = encoding.LatentCache(folder)
    assert [sample["index"] for sample in latents] == list(range(1, 12))
    manifest = json.loads((folder / "00000-of-00003.json").read_text())
    assert [(fault["index"], fault["key"]) for fault in manifest["corrupt"]] == [(0, "00000")]
    strict = encoding.Options(batch_size=4, shard_size=5, transform=images.Transform(), max_corrupt=0)
    with pytest.raises(sources.DatasetError, match=r"more than max_corrupt=0 .* record 00000"):
        encoding.encode_source(source, encode, folder.with_name("strict"), model="m", options=strict)


def test_half_a_character_in_a_caption_is_one_corrupt_record_and_in_another_text_none(folder):
    @dataclasses.dataclass(frozen=True)
    class Own(sources.Source):
        def __len__(self):
            return 5

        def read(self, index):
            caption = "half \ud83d" if index == 1 else f"{index}"
            return {"pixels": np.zeros((1, 4, 4, 3), np.uint8), "caption": caption, "key": f"{index}\udce9.png"}

        def fingerprint(self):
            return "own"

    encoding.encode_source(Own(), encode, folder, model="m", options=OPTIONS)
    latents = encoding.LatentCache(folder)
    assert [sample["caption"] for sample in latents] == ["0", "2", "3", "4"]
    assert latents[1]["key"] == "2\udce9.png"


def test_processes_share_the_shards_and_each_is_made_once(source, folder, monkeypatch):
    made, progress = [], []

    def count(batch):
        made.extend(batch["index"].tolist())
        return encode(batch)

    def report(done, total):
        progress.append((done, total))

    monkeypatch.setattr(encoding.distributed, "barrier", lambda name: None)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    for process in (0, 1):
        assert not encoding.LatentCache(folder).is_complete
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        encoding.encode_together(source, count, folder, model="m", options=OPTIONS, report=report)
        assert progress[-1] == ((7, 7), (5, 5))[process]
    assert encoding.LatentCache(folder).is_complete
    assert sorted(set(made)) == list(range(12))
    encoding.encode_source(source, encode, folder.with_name("alone"), model="m", options=OPTIONS)
    assert read_all(folder) == read_all(folder.with_name("alone"))


def test_a_flipped_bit_in_a_shard_is_found(source, folder):
    encoding.encode_source(source, encode, folder, model="m", options=OPTIONS)
    shard = folder / "00001-of-00003.array_record"
    data = bytearray(shard.read_bytes())
    data[300] ^= 1
    shard.write_bytes(data)
    latents = encoding.LatentCache(folder)
    with pytest.raises(sources.DatasetError, match=r"1 shards .*00001-of-00003\.json"):
        latents.verify()
    faults = []
    for i in range(len(latents)):
        try:
            latents.read(i)
        except sources.CorruptRecord as fault:
            faults.append(fault.shard)
    assert set(faults) == {str(shard)}


def test_a_record_of_another_dtype_or_shape_is_corrupt(source, folder):
    encoding.encode_source(source, encode, folder, model="m", options=OPTIONS)
    manifest = folder / "00000-of-00003.json"
    content = json.loads(manifest.read_text())
    content["arrays"]["latents"][0] = "float32"
    manifest.write_text(json.dumps(content))
    with pytest.raises(sources.CorruptRecord, match=r"latents is not float32 \(1, 4, 4, 3\)"):
        encoding.LatentCache(folder)[0]


def test_an_encoder_that_loses_rows_is_an_error(source, folder):
    with pytest.raises(ValueError, match="first axis of 4"):
        encoding.encode_source(
            source, lambda batch: {"latents": batch["pixels"][:2]}, folder, model="m", options=OPTIONS
        )
    assert not [name for name in os.listdir(folder) if name.endswith(".json")]


def test_fingerprints_of_parameters_know_names_values_and_dtypes():
    params = {"a": {"kernel": np.arange(6.0).reshape(2, 3)}, "b": np.zeros(2, np.float32)}
    assert encoding.fingerprint(params) == encoding.fingerprint({"b": params["b"], "a": params["a"]})
    for other in (
        {"a": {"weight": params["a"]["kernel"]}, "b": params["b"]},
        {"a": {"kernel": params["a"]["kernel"].reshape(3, 2)}, "b": params["b"]},
        {"a": params["a"], "b": np.zeros(2, np.int32)},
        {"a": params["a"], "b": np.array([0, 1], np.float32)},
    ):
        assert encoding.fingerprint(other) != encoding.fingerprint(params)


def test_a_cache_loads_through_the_loader_and_its_fingerprint_knows_the_content(source, folder):
    encoding.encode_source(source, encode, folder, model="m", options=OPTIONS)
    latents = encoding.LatentCache(folder)
    batch = next(loader.Loader(latents, batch_size=6).batches())
    assert batch["latents"].shape == (6, 1, 4, 4, 3)
    assert batch["caption"].tolist() == [f"caption {i}" for i in batch["index"]]
    before = latents.fingerprint()
    os.remove(folder / "00000-of-00003.json")
    encoding.encode_source(
        source, lambda b: {**encode(b), "text": np.ones((4, 1), np.float32)}, folder, model="m", options=OPTIONS
    )
    assert encoding.LatentCache(folder).fingerprint() != before


def test_a_transform_that_cannot_be_told_from_others_is_refused(source, folder):
    for transform in (lambda sample, rng: sample, functools.partial(images.Transform(), rng=None)):
        with pytest.raises(sources.DatasetError, match="cannot be told from others like it"):
            encoding.encode_source(source, encode, folder, model="m", options=encoding.Options(transform=transform))


@pytest.mark.parametrize("field", ["batch_size=0", "shard_size=0", "threads=0", "processes=-1"])
def test_options_out_of_range_are_named(field):
    name, _, value = field.partition("=")
    with pytest.raises(ValueError, match=rf"{field}\b.* at least"):
        encoding.Options(**{name: int(value)})
