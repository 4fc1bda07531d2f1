"""Frozen text encoders from their folders: states, and a fingerprint of all that they depend on."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import weights
from nova_jax.diffusion import conditioning
from nova_jax.models.text import ByteTextEncoder, WordTextEncoder
from nova_jax.models.text.pretrained import T5TextEncoder
from nova_jax.types import Conditioning
from tests import tiny_run
from tests.models.text import tiny_t5

KINDS = ("t5", "umt5")
CAPTIONS = ["a red circle", "", "a large blue square on a yellow star"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    parent = tmp_path_factory.mktemp("text")
    for kind in KINDS:
        tiny_t5.write_folder(parent / kind, kind)
    return parent


@functools.cache
def encoder_of(folders, kind="t5", **fields):
    return T5TextEncoder(path=str(folders / kind), length=12, **fields)


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_module_and_zero_where_masked(folders, kind):
    encoder, module = encoder_of(folders, kind), tiny_t5.make_module(kind)
    ids, mask = encoder.tokenize(CAPTIONS)
    states, out_mask = weights.encode_text(encoder, ids, mask)
    expected = module.apply({"params": tiny_t5.init_params(module)}, jnp.asarray(ids), jnp.asarray(mask))
    np.testing.assert_allclose(states[mask], expected[mask], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(states[~mask], 0)
    assert np.abs(expected[~mask]).min() > 0
    np.testing.assert_array_equal(out_mask, mask)
    assert states.shape == (3, 12, encoder.width)


def test_a_mask_of_ones_and_zeros_is_a_mask_of_booleans(folders):
    ids, mask = encoder_of(folders).tokenize(CAPTIONS)
    states, out_mask = weights.encode_text(encoder_of(folders), ids, mask.astype(np.int64))
    np.testing.assert_array_equal(states, weights.encode_text(encoder_of(folders), ids, mask)[0])
    assert out_mask.dtype == bool
    with pytest.raises(TypeError, match="a mask of float32"):
        weights.encode_text(encoder_of(folders), ids, mask.astype(np.float32))


def test_length_of_padding_changes_nothing_unless_it_is_read(folders):
    def states(length, **fields):
        encoder = T5TextEncoder(path=str(folders / "t5"), length=length, **fields)
        return np.asarray(weights.encode_text(encoder, *encoder.tokenize(["a red circle"]))[0])[:, :4]

    np.testing.assert_allclose(states(6), states(12), atol=1e-5)
    assert np.abs(states(6, reads_padding=True) - states(12, reads_padding=True)).max() > 1e-3


def test_an_encoder_that_reads_padding_attends_to_all_of_it(folders):
    encoder, module = encoder_of(folders, reads_padding=True), tiny_t5.make_module()
    ids, mask = encoder.tokenize(CAPTIONS)
    expected = module.apply({"params": tiny_t5.init_params(module)}, jnp.asarray(ids))
    np.testing.assert_allclose(weights.encode_text(encoder, ids, mask)[0], expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_states_stay_near_and_come_out_in_float32(folders):
    exact, low = (
        weights.encode_text(encoder, *encoder.tokenize(CAPTIONS))[0]
        for encoder in (encoder_of(folders, dtype=dtype) for dtype in (np.float32, jnp.bfloat16))
    )
    assert low.dtype == np.float32
    assert 0 < float(jnp.abs(low - exact).max() / jnp.abs(exact).max()) < 0.05


def test_parameters_are_read_once(folders):
    module, params = weights.load_text(encoder_of(folders))
    assert module == tiny_t5.make_module()
    assert weights.load_text(T5TextEncoder(path=str(folders / "t5"), length=12))[1] is params


def test_the_null_of_guidance_is_a_zero_state_at_the_first_position(folders):
    encoder = encoder_of(folders)
    states, mask = weights.encode_text(encoder, *encoder.tokenize(CAPTIONS))
    nothing = conditioning.null(Conditioning(text=states, text_mask=mask))
    np.testing.assert_array_equal(nothing.text_mask[:, :1], encoder.null(3).mask)
    assert not nothing.text_mask[:, 1:].any()
    assert not nothing.text.any()


@pytest.mark.parametrize("module", [ByteTextEncoder(), WordTextEncoder()], ids=["bytes", "words"])
def test_an_encoder_that_is_trained_inside_a_network_has_no_folder(module):
    with pytest.raises(TypeError, match=f"{type(module).__name__} is trained inside a network"):
        weights.encode_text(module, *module.tokenize(["a"]))


def test_a_folder_of_another_model_is_refused(tmp_path):
    weights.save(tiny_run.TINY_VAE, jax.jit(tiny_run.TINY_VAE.init)(jax.random.key(0)), tmp_path)
    with pytest.raises(weights.WeightsError, match="holds a VAE; a T5 or umT5 encoder is needed"):
        weights.load_text(T5TextEncoder(path=str(tmp_path)))


def flip(path, offset=-1):
    """Changes one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def test_the_fingerprint_changes_with_a_byte_of_any_file_and_with_what_is_read(folders, tmp_path):
    plain = weights.text_fingerprint(encoder_of(folders))
    found = [plain, weights.text_fingerprint(encoder_of(folders, reads_padding=True))]
    found.append(weights.text_fingerprint(encoder_of(folders, dtype=jnp.bfloat16)))
    found.append(weights.text_fingerprint(T5TextEncoder(path=str(folders / "t5"), length=13)))
    for name, offset in (("model.safetensors", -1), ("tokenizer.json", -3), ("config.json", -3)):
        copy = tmp_path / name
        shutil.copytree(folders / "t5", copy)
        assert weights.text_fingerprint(T5TextEncoder(path=str(copy), length=12)) == plain, "where it lies is no matter"
        flip(copy / name, offset)
        found.append(weights.text_fingerprint(T5TextEncoder(path=str(copy), length=12)))
    assert len(set(found)) == len(found) == 7


def test_the_fingerprint_follows_a_tokenizer_that_lies_elsewhere(folders, tmp_path):
    tiny_t5.make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    encoder = encoder_of(folders, tokenizer_path=str(tmp_path))
    before = weights.text_fingerprint(encoder)
    flip(tmp_path / "tokenizer.json", -3)
    assert weights.text_fingerprint(encoder) != before
