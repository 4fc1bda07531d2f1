import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from nova_jax import weights
from nova_jax.models import dit, text, text_to_latent, vae
from nova_jax.models.text import t5
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules
from nova_jax.weights import safetensors, tables

REFERENCES = pathlib.Path(__file__).parents[1] / "references" / "wan_tiny"
SMALL_DIT = dit.DiT(width=16, depth=2, num_heads=2, in_channels=3, text_dim=8, aligned_channels=2, num_frame_roles=2)
SMALL_TEXT = text.ByteTextEncoder(width=8, depth=1, num_heads=2, byte_width=4)
MODULES = {
    "dit": SMALL_DIT,
    "text": SMALL_TEXT,
    "words": text.WordTextEncoder(width=8, depth=1, num_heads=2, byte_width=4, num_rows=16),
    "text_to_latent": text_to_latent.TextToLatent(dit=SMALL_DIT, text_encoder=SMALL_TEXT),
    "t5": t5.T5Encoder(vocab_size=9, width=8, depth=2, num_heads=2, head_dim=4, mlp_width=8, dtype=jnp.bfloat16),
    "vae": vae.VAE(latent_channels=2, width=4, width_multipliers=(1, 2), halves_time=(False,), num_blocks=1),
}


def random_params(module, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), weights.abstract_params(module))


@pytest.mark.parametrize("name", MODULES)
def test_every_kind_of_module_is_read_back_to_the_bit(tmp_path, name):
    module, params = MODULES[name], random_params(MODULES[name])
    weights.save(module, params, tmp_path / "new" / "folder")
    loaded_module, loaded = weights.load(tmp_path / "new" / "folder")
    assert loaded_module == module
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_stored_paths_are_the_parameters_own(tmp_path):
    weights.save(SMALL_TEXT, random_params(SMALL_TEXT), tmp_path)
    assert "blocks/mlp/up/kernel" in safetensors.read_header(tmp_path / "model.safetensors").tensors
    name = json.loads((tmp_path / "config.json").read_text())["_class_name"]
    assert name == "nova_jax.models.text.byte_groups:ByteTextEncoder"


def test_a_folder_that_names_a_class_where_it_once_was_is_read(tmp_path):
    params = random_params(SMALL_TEXT)
    weights.save(SMALL_TEXT, params, tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    old = {name: value for name, value in written.items() if name not in ("length", "aligns_words")}
    old["_class_name"] = "nova_jax.models.text:ByteTextEncoder"
    (tmp_path / "config.json").write_text(json.dumps(old))
    module, loaded = weights.load(tmp_path)
    assert module == SMALL_TEXT
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_files_come_back_as_float32_masters(tmp_path, dtype):
    params = random_params(SMALL_TEXT)
    weights.save(SMALL_TEXT, params, tmp_path, dtype=dtype)
    stored = safetensors.read(tmp_path)
    assert {array.dtype for array in stored.values()} == {np.dtype(dtype)}
    _, loaded = weights.load(tmp_path)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(dtype).astype(np.float32)), loaded, params)


def test_dtype_of_the_parameters_can_be_chosen(tmp_path):
    weights.save(SMALL_TEXT, random_params(SMALL_TEXT), tmp_path)
    _, params = weights.load(tmp_path, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(ml_dtypes.bfloat16)}


def test_a_mesh_places_parameters_by_the_rules(tmp_path):
    params = random_params(SMALL_DIT)
    weights.save(SMALL_DIT, params, tmp_path)
    mesh = meshes.MeshConfig(data=2, fsdp=2, tensor=2).make()
    _, loaded = weights.load(tmp_path, mesh=mesh)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert jax.tree.map(lambda leaf: leaf.sharding, loaded) == rules.shardings(params, mesh)
    assert not loaded["blocks"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated


def test_saving_params_of_another_module_is_refused_before_anything_is_written(tmp_path):
    params = random_params(SMALL_TEXT)
    params["embed"]["embedding"] = params["embed"]["embedding"][:3]
    with pytest.raises(weights.WeightsError, match=r"1 of the wrong shape: embed/embedding \(3, 4\)"):
        weights.save(SMALL_TEXT, params, tmp_path / "x")
    del params["embed"]
    with pytest.raises(weights.WeightsError, match="1 missing: embed/embedding"):
        weights.save(SMALL_TEXT, params, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_lacks_a_tensor_names_it(tmp_path):
    params = random_params(SMALL_TEXT)
    weights.save(SMALL_TEXT, params, tmp_path)
    flat = tables.flatten(params)
    del flat["final_norm/scale"]
    safetensors.write(tmp_path / "model.safetensors", flat | {"stranger": np.ones(1)})
    with pytest.raises(weights.WeightsError, match="1 missing: final_norm/scale; 1 unknown: stranger"):
        weights.load(tmp_path)


def test_a_config_that_names_no_model_is_refused(tmp_path):
    for config, message in [
        ({"_class_name": "os:system"}, "describes a 'os:system'; known are"),
        ({"_class_name": "UNet2DConditionModel"}, "describes a 'UNet2DConditionModel'; known are AutoencoderKLWan"),
        ({"_class_name": "nova_jax.models.dit:os.system"}, "does not exist"),
        ({"_class_name": "nova_jax.config:ConfigError"}, "is not a config class"),
        ({"_class_name": "nova_jax_evil.x:Y"}, "known are"),
        ({"_class_name": "nova_jax.models.text:ByteTextEncoder", "colour": 1}, r"no fields \['colour'\]"),
        ({"_class_name": "nova_jax.models.text:ByteTextEncoder", "width": "wide"}, "wide"),
        ({"_class_name": "nova_jax.models.dit:DiT", "width": 16}, "missing"),
        ({"_class_name": "nova_jax.parallel.mesh:MeshConfig"}, "MeshConfig is not a model"),
        ({"_class_name": ["nova_jax"]}, "names no class"),
        ({"model_type": "bert"}, "names no class"),
        ([], "is a list, not an object"),
    ]:
        (tmp_path / "config.json").write_text(json.dumps(config))
        safetensors.write(tmp_path / "model.safetensors", {"x": np.ones(1)})
        with pytest.raises(weights.WeightsError, match=message) as caught:
            weights.load(tmp_path)
        assert str(tmp_path) in str(caught.value)
        assert "nova_jax_evil" not in sys.modules


def test_a_pipeline_folder_points_at_its_parts(tmp_path):
    (tmp_path / "model_index.json").write_text("{}")
    for part in ("vae", "transformer"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "config.json").write_text("{}")
    with pytest.raises(weights.WeightsError, match="load one of its folders, transformer, vae"):
        weights.load(tmp_path)


def test_a_folder_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(weights.WeightsError, match="no such folder"):
        weights.load(tmp_path / "nowhere")
    with pytest.raises(weights.WeightsError, match=r"config\.json: no such file"):
        weights.load(tmp_path)


@pytest.mark.parametrize("name", ["dit_wan22_ti2v", "umt5", "vae_wan21"])
def test_public_models_survive_the_way_through_our_own_format(tmp_path, name):
    module, params = weights.load(REFERENCES / name)
    weights.save(module, params, tmp_path)
    again_module, again = weights.load(tmp_path)
    assert again_module == module
    jax.tree.map(np.testing.assert_array_equal, again, params)
