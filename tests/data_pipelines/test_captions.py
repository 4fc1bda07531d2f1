"""Captions of a batch as ids, or as states of a frozen encoder, and which of the two data asks for."""

import dataclasses
import types

import numpy as np
import pytest

from data_pipelines import captions
from nova_jax import weights
from nova_jax.models.text import ByteTextEncoder, WordTextEncoder
from nova_jax.models.text.pretrained import T5TextEncoder
from tests.models.text import tiny_t5

WORDS = WordTextEncoder(length=5)
CAPTIONS = np.array(["a red circle", "a large blue square on a star"])
PIXELS = np.zeros((2, 1, 4, 4, 3), np.float32)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    tiny_t5.write_folder(path)
    return T5TextEncoder(path=str(path), length=6)


def test_captions_become_ids_and_mask_and_the_rest_stays():
    batch = {"caption": CAPTIONS, "pixels": PIXELS}
    out = captions.Tokenize(WORDS)(batch)
    assert sorted(out) == ["pixels", "text_ids", "text_mask"]
    ids, mask = WORDS.tokenize(list(map(str, CAPTIONS)), truncate=True)
    np.testing.assert_array_equal(out["text_ids"], ids)
    np.testing.assert_array_equal(out["text_mask"], mask)
    assert out["text_mask"].sum(1).tolist() == [4, 5], "a caption that does not fit is cut"
    assert out["pixels"] is PIXELS
    assert "caption" in batch, "the batch that came in is as it was"


def test_captions_become_states_of_a_frozen_encoder_and_the_rest_stays(frozen):
    out = captions.Encode(frozen)({"caption": CAPTIONS, "pixels": PIXELS})
    assert sorted(out) == ["pixels", "text", "text_mask"]
    states, mask = weights.encode_text(frozen, *frozen.tokenize(list(map(str, CAPTIONS)), truncate=True))
    np.testing.assert_array_equal(out["text"], states)
    np.testing.assert_array_equal(out["text_mask"], mask)
    assert all(isinstance(out[name], np.ndarray) for name in out)


def test_a_batch_without_captions_is_an_error_that_lists_what_there_is(frozen):
    for step in (captions.Tokenize(WORDS), captions.Encode(frozen)):
        with pytest.raises(ValueError, match="only pixels"):
            step({"pixels": PIXELS})


def test_kept_states_are_those_in_half_precision_and_are_read_back_in_single(frozen):
    kept = captions.states_of(frozen, CAPTIONS)
    made = captions.Encode(frozen)({"caption": CAPTIONS})
    assert kept["text"].dtype == np.float16
    np.testing.assert_array_equal(kept["text"], made["text"].astype(np.float16))
    np.testing.assert_array_equal(kept["text_mask"], made["text_mask"])
    read = captions.batch_step(frozen, is_cached=True)({"caption": CAPTIONS, "latents": PIXELS, **kept})
    assert sorted(read) == ["latents", "text", "text_mask"]
    assert read["text"].dtype == np.float32
    np.testing.assert_array_equal(read["text"], kept["text"].astype(np.float32))


def test_an_encoder_that_is_trained_is_given_ids_whether_or_not_states_are_kept(frozen):
    for is_cached in (True, False):
        assert captions.batch_step(WORDS, is_cached=is_cached) == captions.Tokenize(WORDS)
    assert captions.batch_step(frozen, is_cached=False) == captions.Encode(frozen)


def test_states_are_kept_of_a_frozen_encoder_alone(frozen):
    def data(encoder, caches_text=True):
        return types.SimpleNamespace(text_encoder=encoder, caches_text=caches_text)

    assert captions.cached_encoder(data(frozen)) is frozen
    for other in (data(frozen, caches_text=False), data(WORDS), data(None)):
        assert captions.cached_encoder(other) is None


@dataclasses.dataclass(frozen=True)
class Data:
    text_encoder: object = None


def test_data_takes_the_encoder_of_the_network_unless_it_names_another():
    assert captions.bind(Data(), WORDS) == captions.bind(Data(WORDS), WORDS) == Data(WORDS)
    with pytest.raises(ValueError, match=r"(?s)the network trains WordTextEncoder.*data names ByteTextEncoder.*leave"):
        captions.bind(Data(ByteTextEncoder()), WORDS)
    with pytest.raises(ValueError, match=r"data names WordTextEncoder"):
        captions.bind(Data(WORDS.clone(length=6)), WORDS)


def test_data_without_any_encoder_says_what_to_do():
    assert captions.check(WORDS) is WORDS
    with pytest.raises(ValueError, match="nothing reads the captions"):
        captions.check(None)
