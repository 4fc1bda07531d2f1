import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.weights import safetensors, tables, wan_vae

FIXTURES = pathlib.Path(__file__).parent.parent / "references" / "wan_tiny"
NAMES = pytest.mark.parametrize("name", ["vae_wan21", "vae_wan22"])
TOLERANCE = 1e-5  # of the largest value; float32 PyTorch differs from float64 PyTorch by 3e-6


@functools.cache
def load(folder):
    config = json.loads((folder / "config.json").read_text())
    vae = wan_vae.module_from_config(config)
    expected = jax.eval_shape(vae.init, jax.random.key(0))
    return vae, tables.convert(wan_vae.entries(vae), safetensors.read(folder), expected=expected)


def reference(folder, name, key):
    return jnp.moveaxis(np.load(folder / f"{name}.npz")[key], 1, -1)


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE * np.abs(theirs).max())


def check_whole(folder, name, frames):
    vae, params = load(folder / name)
    mean, logvar = jax.jit(vae.encode)(params, reference(folder, name, f"pixels_{frames}"))
    assert_close(mean, reference(folder, name, f"mean_{frames}"))
    assert_close(logvar, reference(folder, name, f"logvar_{frames}"))
    decoded = jax.jit(vae.decode)(params, reference(folder, name, f"latents_{frames}"))
    assert_close(decoded, reference(folder, name, f"decoded_{frames}"))


def check_stream(folder, name, frames, latents_per_chunk):
    vae, params = load(folder / name)
    time, _, _ = vae.compression
    pixels, latents = (reference(folder, name, f"{key}_{frames}") for key in ("pixels", "latents"))
    starts = np.arange(latents_per_chunk, latents.shape[1], latents_per_chunk)
    means, logvars = zip(*vae.encode_stream(params, jnp.split(pixels, 1 + (starts - 1) * time, axis=1)), strict=True)
    assert_close(jnp.concatenate(means, axis=1), reference(folder, name, f"mean_{frames}"))
    assert_close(jnp.concatenate(logvars, axis=1), reference(folder, name, f"logvar_{frames}"))
    decoded = list(vae.decode_stream(params, jnp.split(latents, starts, axis=1)))
    assert_close(jnp.concatenate(decoded, axis=1), reference(folder, name, f"decoded_{frames}"))


@pytest.mark.long
@NAMES
def test_clips_equal_those_of_diffusers(name):
    check_whole(FIXTURES, name, 9)


@pytest.mark.long
@NAMES
@pytest.mark.parametrize("frames", [1, 9])
def test_images_and_streams_equal_those_of_diffusers(name, frames):
    check_stream(FIXTURES, name, frames, latents_per_chunk=1)


@pytest.mark.slow
@NAMES
@pytest.mark.parametrize("frames", [1, 5, 9])
def test_larger_references_agree_whole_and_in_chunks(shared, name, frames):
    folder = shared / "reference" / "wan_tiny"
    check_whole(folder, name, frames)
    for latents_per_chunk in (1, 2):
        check_stream(folder, name, frames, latents_per_chunk)


@NAMES
def test_every_tensor_of_the_file_is_used_exactly_as_often_as_expected(name):
    vae, _ = load(FIXTURES / name)
    sources = [entry.source for entry in wan_vae.entries(vae)]
    repeated = {source for source in sources if sources.count(source) > 1}
    assert repeated == {
        f"{half}.mid_block.attentions.0.to_qkv.{leaf}" for half in ("encoder", "decoder") for leaf in ("weight", "bias")
    }
    assert set(sources) == set(safetensors.read(FIXTURES / name))


def config_of(name):
    return json.loads((FIXTURES / name / "config.json").read_text())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attn_scales", [0.5]),
        ("dropout", 0.1),
        ("in_channels", 4),
        ("out_channels", 12),
        ("scale_factor_spatial", 16),
        ("scale_factor_temporal", 8),
        ("latents_mean", [0.0]),
        ("an_option_of_tomorrow", True),
    ],
)
def test_unsupported_values_and_unknown_keys_are_named(key, value):
    with pytest.raises(safetensors.WeightsError, match=key):
        wan_vae.module_from_config({**config_of("vae_wan21"), key: value})


def test_a_missing_key_is_named():
    config = config_of("vae_wan21")
    del config["z_dim"]
    with pytest.raises(safetensors.WeightsError, match="z_dim"):
        wan_vae.module_from_config(config)


def test_configs_older_than_wan22_mean_the_wan21_form():
    config = config_of("vae_wan21")
    for key in (
        "is_residual",
        "patch_size",
        "in_channels",
        "out_channels",
        "scale_factor_temporal",
        "scale_factor_spatial",
    ):
        del config[key]
    assert wan_vae.module_from_config(config) == wan_vae.module_from_config(config_of("vae_wan21"))
