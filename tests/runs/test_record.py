"""Records of runs from before text encoders knew their length: brought to today's form, loaded, drawn from, resumed."""

import copy
import dataclasses
import importlib
import json

import numpy as np
import pytest

from nova_jax import config as configs
from nova_jax import experiment, generation
from nova_jax.models.text import ByteTextEncoder, WordTextEncoder
from nova_jax.models.text.pretrained import T5TextEncoder
from nova_jax.runs import record
from nova_jax.runs.config import CHANGEABLE
from tests import tiny_run

OLD_ENCODER = {
    "_class_name": "nova_jax.models.text:ByteTextEncoder",
    "width": 8,
    "depth": 1,
    "num_heads": 2,
    "byte_width": 64,
    "downsample": 4,
    "mlp_ratio": 4.0,
    "dtype": {"_dtype": "float32"},
}
ENCODER = ByteTextEncoder(width=8, depth=1, num_heads=2, length=96)
OLD_DATA = {
    "_class_name": "data_pipelines.datasets:CaptionedLatents",
    "source": {"_class_name": "data_pipelines.scenes.source:Scenes", "seed": 0, "length": 32},
    "codec_path": "vae",
    "text_length": 96,
    "size": None,
}
OTHER_DATA = OLD_DATA | {"_class_name": "data_pipelines.conditioned:ConditionedLatents", "num_frames": 1}


def old_record(data):
    """What config.json of an earlier version said, as far as it matters."""
    model = {
        "_class_name": "nova_jax.models.text_to_latent:TextToLatent",
        "dit": {"_class_name": "nova_jax.models.dit:DiT", "width": 16, "text_dim": 8},
        "text_encoder": OLD_ENCODER,
    }
    config = {
        "_class_name": "nova_jax.runs.config:TrainConfig",
        "name": "old",
        "model": model,
        "data": data,
        "steps": 4,
    }
    return {"config": config, "data": {"latent_shape": [1, 4, 4, 4], "text_length": 96}, "flops_per_step": 1.0}


def without(mapping, *names):
    return {name: value for name, value in mapping.items() if name not in names}


def test_the_encoder_of_an_old_run_gets_the_length_of_its_data_and_the_data_gets_the_encoder():
    old = old_record(OLD_DATA)
    before = copy.deepcopy(old)
    new = record.upgrade(old)
    assert configs.from_dict(new["config"]["model"]["text_encoder"]) == ENCODER
    assert configs.from_dict(new["config"]["data"]["text_encoder"]) == ENCODER
    assert without(new["config"]["data"], "text_encoder") == without(OLD_DATA, "text_length")
    assert without(new["config"], "model", "data") == without(old["config"], "model", "data")
    assert new["config"]["model"]["dit"] == old["config"]["model"]["dit"]
    assert without(new, "config") == without(old, "config")
    assert old == before, "the record that came in is as it was"


def test_every_part_of_a_mixture_gets_the_encoder():
    parts = [[OLD_DATA, 1], [OTHER_DATA, 2, 3.0]]
    mixture = {"_class_name": "data_pipelines.mixture:Mixture", "parts": parts, "processes": 0}
    new = record.upgrade(old_record(mixture))["config"]["data"]
    assert without(new, "parts") == without(mixture, "parts")
    assert [part[1:] for part in new["parts"]] == [[1], [2, 3.0]]
    for part, old in zip(new["parts"], (OLD_DATA, OTHER_DATA), strict=True):
        assert configs.from_dict(part[0]["text_encoder"]) == ENCODER
        assert without(part[0], "text_encoder") == without(old, "text_length")


def test_classes_that_moved_are_found_under_their_new_names():
    t5 = {"_class_name": "nova_jax.models.t5:T5Encoder", "vocab_size": 9}
    old = {"config": {"model": t5, "data": None}, "data": {}}
    assert record.upgrade(old)["config"]["model"]["_class_name"] == "nova_jax.models.text.t5:T5Encoder"


def test_every_class_that_moved_is_where_its_new_name_says():
    for old, new in configs.MOVED.items():
        module, _, name = new.partition(":")
        assert dataclasses.is_dataclass(getattr(importlib.import_module(module), name))
        assert configs.renamed({configs.CLASS_KEY: old}) == {configs.CLASS_KEY: new}


@pytest.mark.parametrize("encoder", [WordTextEncoder(), ByteTextEncoder(), T5TextEncoder(path="t5")], ids=repr)
def test_a_record_of_today_is_as_it_was(encoder):
    trained = {} if encoder.is_frozen else {"text_encoder": configs.to_dict(encoder)}
    data = without(OLD_DATA, "text_length") | {"text_encoder": configs.to_dict(encoder)}
    today = old_record(data)
    today["config"]["model"] = without(today["config"]["model"], "text_encoder") | trained
    assert record.upgrade(copy.deepcopy(today)) == today


def test_a_record_that_was_brought_to_todays_form_stays_in_it():
    once = record.upgrade(old_record(OLD_DATA))
    assert record.upgrade(copy.deepcopy(once)) == once


def test_the_record_of_an_autoencoder_is_as_it_was():
    model = configs.to_dict(tiny_run.TINY_VAE)
    data = {"_class_name": "data_pipelines.datasets:Pixels", "source": OLD_DATA["source"]}
    given = {"config": {"model": model, "data": data}, "data": {"pixel_shape": [1, 8, 8, 3]}}
    assert record.upgrade(copy.deepcopy(given)) == given


def test_a_field_that_may_change_may_do_so_in_every_part_of_a_mixture():
    def saved(limit, seed=0):
        part = {"source": {"decoder": {"size": [8, 8]}}, "seed": seed, "max_corrupt": limit}
        return {"steps": 3, "data": {"parts": [[part, 2], [part | {"source": {"of": part}}, 1, 7.0]]}}

    may_change = CHANGEABLE
    assert record.differences(saved(8), saved(9) | {"steps": 4}, may_change) == []
    assert record.differences({"max_corrupt": 8}, {"max_corrupt": 9}, may_change) != []
    assert record.differences(saved(8), saved(8, seed=1), may_change) == [
        "data.parts[0][0].seed was 0 and is 1",
        "data.parts[1][0].source.of.seed was 0 and is 1",
        "data.parts[1][0].seed was 0 and is 1",
    ]
    longer = {"parts": [*saved(8)["data"]["parts"], 1]}
    (line,) = record.differences(saved(8)["data"], longer, may_change, "data")
    assert line.startswith("data.parts was [[")


def test_a_folder_without_a_record_is_no_run(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no config\.json"):
        record.read(tmp_path)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run whose encoder reads bytes, as all did."""
    plain = tiny_run.make_config(tmp_path_factory.mktemp("old"))
    encoder = ByteTextEncoder(width=8, depth=1, num_heads=2, length=64)
    return dataclasses.replace(plain, model=dataclasses.replace(plain.model, text_encoder=encoder), preview=None)


def make_old(path):
    """Writes a record as earlier versions did."""
    saved = json.loads(path.read_text())
    model, data = saved["config"]["model"], saved["config"]["data"]
    encoder = without(model["text_encoder"], "length", "aligns_words")
    encoder["_class_name"] = "nova_jax.models.text:ByteTextEncoder"
    model |= {"text_encoder": encoder, "dit": without(model["dit"], "text_attention")}
    data = without(data, "text_encoder", "caches_text") | {"text_length": saved["data"]["text_length"]}
    saved["config"] |= {"model": model, "data": data}
    path.write_text(json.dumps(saved))
    return saved


@pytest.mark.long
def test_an_old_run_draws_the_same_pictures_and_goes_on(config):
    result = experiment.run(config)
    path, prompts = result.directory / record.FILE, ["a red circle", "größe"]
    settings = generation.SamplingSettings(num_steps=2)
    today = generation.load_run(result.directory)
    pixels = generation.generate(today, prompts, [3, 4], settings)
    written = json.loads(path.read_text())

    old = make_old(path)
    assert "aligns_words" not in json.dumps(old)
    assert '"length": 64' not in json.dumps(old["config"]["model"])
    loaded = generation.load_run(result.directory)
    assert loaded.text_encoder == loaded.network.text_encoder == today.text_encoder == config.model.text_encoder
    np.testing.assert_array_equal(generation.generate(loaded, prompts, [3, 4], settings), pixels)
    with pytest.raises(ValueError, match="trains its own text encoder"):
        generation.load_run(result.directory, text_path="t5")

    shorter = dataclasses.replace(config.model, text_encoder=config.model.text_encoder.clone(length=32))
    with pytest.raises(configs.ConfigError, match=r"length was 64 and is 32"):
        experiment.run(dataclasses.replace(config, model=shorter))
    longer = experiment.run(dataclasses.replace(config, steps=6))
    assert int(longer.state.step) == 6
    lines = [json.loads(line) for line in (result.directory / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]
    assert json.loads(path.read_text())["config"] == written["config"] | {"steps": 6}


def test_a_run_that_was_started_with_a_tilde_is_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    old = old_record(OLD_DATA | {"cache_path": "~/cache"})
    assert record.upgrade(old)["config"]["data"]["cache_path"] == str(tmp_path / "cache")


def test_a_byte_order_mark_is_no_part_of_a_record(tmp_path):
    text = json.dumps({"config": {"name": "x"}, "data": {}})
    (tmp_path / record.FILE).write_text("\ufeff" + text, encoding="utf-8")
    assert record.read(tmp_path) == json.loads(text)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "null"])
def test_a_file_that_is_no_record_is_one_sentence(text, tmp_path):
    (tmp_path / record.FILE).write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is not the record of a run: "):
        record.read(tmp_path)
