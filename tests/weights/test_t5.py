import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import weights
from nova_jax.weights import safetensors


@pytest.mark.parametrize("name", ["t5_v1_1", "umt5"])
def test_states_equal_those_of_transformers(wan_tiny, name):
    module, params = weights.load(wan_tiny / name)
    data = np.load(wan_tiny / f"{name}.npz")
    ids, mask = jnp.asarray(data["ids"], jnp.int32), jnp.asarray(data["mask"], bool)
    states = jax.jit(module.apply)({"params": params}, ids, mask)
    assert abs(states - data["states"]).max() / abs(data["states"]).max() < 1e-5


def copy_with(source, target, config=None, tensors=None):
    original = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(original | (config or {})))
    safetensors.write(target / "model.safetensors", safetensors.read(source) | (tensors or {}))


def test_a_whole_t5_gives_its_encoder(wan_tiny, tmp_path):
    extra = {
        "decoder.block.0.x.weight": np.ones(2),
        "lm_head.weight": np.ones(2),
        "encoder.embed_tokens.weight": np.ones(2),
    }
    copy_with(wan_tiny / "t5_v1_1", tmp_path, {"architectures": ["T5ForConditionalGeneration"]}, extra)
    (_, whole), (_, encoder) = weights.load(tmp_path), weights.load(wan_tiny / "t5_v1_1")
    jax.tree.map(np.testing.assert_array_equal, whole, encoder)


@pytest.mark.parametrize("twin", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"])
def test_the_embedding_is_found_under_the_one_name_that_save_model_keeps(wan_tiny, tmp_path, twin):
    copy_with(wan_tiny / "t5_v1_1", tmp_path)
    tensors = dict(safetensors.read(tmp_path))
    embedding = np.array(tensors.pop("shared.weight"))
    safetensors.write(tmp_path / "model.safetensors", tensors | {twin: embedding})
    _, params = weights.load(tmp_path)
    np.testing.assert_array_equal(params["embed"]["embedding"], embedding)


def test_an_embedding_under_no_name_is_missing(wan_tiny, tmp_path):
    copy_with(wan_tiny / "t5_v1_1", tmp_path)
    tensors = dict(safetensors.read(tmp_path))
    del tensors["shared.weight"]
    safetensors.write(tmp_path / "model.safetensors", tensors)
    with pytest.raises(weights.WeightsError, match=r"1 missing: shared\.weight"):
        weights.load(tmp_path)


def test_umt5_weights_under_a_t5_config_are_refused(wan_tiny, tmp_path):
    copy_with(wan_tiny / "umt5", tmp_path, {"model_type": "t5"})
    with pytest.raises(weights.WeightsError, match=r"unknown: encoder\.block\.1\..*relative_attention_bias"):
        weights.load(tmp_path)


def test_the_relu_of_the_first_t5_is_refused(wan_tiny, tmp_path):
    copy_with(wan_tiny / "t5_v1_1", tmp_path, {"feed_forward_proj": "relu"})
    with pytest.raises(weights.WeightsError, match="feed_forward_proj is 'relu'; only the gated-gelu"):
        weights.load(tmp_path)


def test_a_size_that_is_missing_or_no_number_is_refused(wan_tiny, tmp_path):
    copy_with(wan_tiny / "t5_v1_1", tmp_path, {"d_model": "24"})
    with pytest.raises(weights.WeightsError, match=str(tmp_path)):
        weights.load(tmp_path)
    (tmp_path / "config.json").write_text('{"architectures": ["T5EncoderModel"], "feed_forward_proj": "gated-gelu"}')
    with pytest.raises(weights.WeightsError, match="no 'vocab_size', which T5 needs"):
        weights.load(tmp_path)
