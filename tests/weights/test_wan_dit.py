import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import weights
from nova_jax.types import Conditioning
from nova_jax.weights import safetensors, tables, wan_dit

WAN_1_3B = {
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "eps": 1e-6,
    "ffn_dim": 8960,
    "freq_dim": 256,
    "in_channels": 16,
    "num_attention_heads": 12,
    "num_layers": 30,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "text_dim": 4096,
}


def predict(module, params, data, case):
    """The module's answer to a reference input, and the reference's, both b f h w c."""
    x, expected = (jnp.asarray(np.moveaxis(data[f"{case}_{key}"], 1, -1)) for key in ("x", "out"))
    t = jnp.asarray(data[f"{case}_timestep"] / 1000, jnp.float32)
    if t.ndim == 2:  # one time per token; those of a frame are equal
        t = t.reshape(*x.shape[:2], -1)[:, :, 0]
    cond = Conditioning(text=jnp.asarray(data[f"{case}_text"]))
    return jax.jit(module.apply)({"params": params}, x, t, cond), expected


@pytest.mark.parametrize("case", ["image", "video"])
@pytest.mark.parametrize("name", ["dit_wan21", "dit_wan22_ti2v"])
def test_predictions_equal_those_of_diffusers(wan_tiny, name, case):
    module, params = weights.load(wan_tiny / name)
    actual, expected = predict(module, params, np.load(wan_tiny / f"{name}.npz"), case)
    assert float(abs(actual - expected).max() / abs(expected).max()) < 1e-5


ORIGINAL_NAMES = (  # of the release's own code, in the order they are applied
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^proj_out", "head.head"),
    (r"\.scale_shift_table", ".modulation"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"\.to_(q|k|v)\.", r".\1."),
    (r"\.to_out\.0\.", ".o."),
    (r"\.norm2\.", ".norm3."),
    (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
    (r"\.ffn\.net\.2\.", ".ffn.2."),
)


def original_folder(source, target):
    """The same model under the names of the original release."""
    config = json.loads((source / "config.json").read_text())
    heads = config["num_attention_heads"]
    original = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "dim": heads * config["attention_head_dim"],
        "eps": config["eps"],
        "ffn_dim": config["ffn_dim"],
        "freq_dim": config["freq_dim"],
        "in_dim": config["in_channels"],
        "model_type": "t2v",
        "num_heads": heads,
        "num_layers": config["num_layers"],
        "out_dim": config["out_channels"],
        "text_dim": config["text_dim"],
        "text_len": 512,
    }
    (target / "config.json").write_text(json.dumps(original))
    renamed = {}
    for name, tensor in safetensors.read(source).items():
        for ours, theirs in ORIGINAL_NAMES:
            name = re.sub(ours, theirs, name)
        renamed[name] = tensor
    safetensors.write(target / "diffusion_pytorch_model.safetensors", renamed)


def test_the_original_names_give_the_same_model(wan_tiny, tmp_path):
    original_folder(wan_tiny / "dit_wan21", tmp_path)
    module, params = weights.load(tmp_path)
    expected_module, expected = weights.load(wan_tiny / "dit_wan21")
    assert module == expected_module
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_channels_after_the_noisy_latents_become_the_aligned_condition(wan_tiny, tmp_path):
    """An image-to-video patch kernel is cut in two: with the second half zero, the model is the text-to-video one."""
    source = wan_tiny / "dit_wan21"
    config, tensors = json.loads((source / "config.json").read_text()), safetensors.read(source)
    kernel = tensors["patch_embedding.weight"]
    more = np.random.default_rng(0).normal(size=(kernel.shape[0], 3, *kernel.shape[2:])).astype(np.float32)
    tensors["patch_embedding.weight"] = np.concatenate([kernel, more], axis=1)
    (tmp_path / "config.json").write_text(json.dumps(config | {"in_channels": kernel.shape[1] + 3}))
    safetensors.write(tmp_path / "model.safetensors", tensors)

    module, params = weights.load(tmp_path)
    _, base = weights.load(source)
    assert (module.in_channels, module.aligned_channels) == (kernel.shape[1], 3)
    aligned = params.pop("patch_embed_aligned")["kernel"]
    jax.tree.map(np.testing.assert_array_equal, params, base)
    # Rows are (frame, row, column, channel).
    np.testing.assert_array_equal(aligned.reshape(1, 2, 2, 3, -1)[0, 1, 0, 2], more[:, 2, 0, 1, 0])


def count(module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(weights.abstract_params(module)))


def test_published_configs_have_the_published_sizes():
    """Wan 2.1 1.3B, Wan 2.2 5B and 14B, with no memory spent."""
    large = {"num_attention_heads": 24, "ffn_dim": 14336, "in_channels": 48, "out_channels": 48}
    huge = {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
    sizes = [count(wan_dit.module_from_config(WAN_1_3B | change)) for change in ({}, large, huge)]
    assert [round(size / 1e9, 2) for size in sizes] == [1.42, 5.0, 14.29]


def test_tables_name_every_parameter_once():
    module = wan_dit.module_from_config(WAN_1_3B | {"in_channels": 36})
    for table in (wan_dit.entries(module), wan_dit.original_entries(module)):
        targets = [entry.target for entry in table]
        assert sorted(targets) == sorted(tables.flatten(weights.abstract_params(module)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_dim": 1280, "added_kv_proj_dim": 1536}, "has added_kv_proj_dim=1536; only None is implemented"),
        ({"qk_norm": None}, "only 'rms_norm_across_heads' is implemented"),
        ({"num_experts": 8}, "keys this version does not know: num_experts"),
    ],
)
def test_configs_beyond_what_is_implemented_are_refused(change, message):
    with pytest.raises(weights.WeightsError, match=message):
        wan_dit.module_from_config(WAN_1_3B | change)


def test_a_missing_key_is_named():
    with pytest.raises(weights.WeightsError, match="no 'ffn_dim', which WanTransformer3DModel needs"):
        wan_dit.module_from_config({key: value for key, value in WAN_1_3B.items() if key != "ffn_dim"})
