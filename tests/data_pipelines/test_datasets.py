"""Streams of batches: shapes and ranges, the latent cache behind them, resumption at any position."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from data_pipelines import datasets, sources
from data_pipelines.scenes import source
from data_pipelines.sources.memory import InMemory
from nova_jax import experiment, weights
from nova_jax.models import text
from nova_jax.models.text import byte_groups
from nova_jax.models.text.pretrained import T5TextEncoder
from tests.models.text import tiny_t5
from tests.tiny_run import TINY_VAE

SCENES = source.Scenes(length=24)
BYTES = text.ByteTextEncoder(length=64)


@pytest.fixture(scope="module")
def codec_path(tmp_path_factory):
    vae = dataclasses.replace(TINY_VAE, latents_mean=(0.5, 0.0, 0.0, 0.0), latents_std=(2.0, 1.0, 1.0, 1.0))
    path = tmp_path_factory.mktemp("vae")
    weights.save(vae, jax.jit(vae.init)(jax.random.key(0)), path)
    return str(path)


@pytest.fixture(scope="module")
def latents(codec_path, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return datasets.CaptionedLatents(source=SCENES, codec_path=codec_path, cache_path=str(cache), text_encoder=BYTES)


def test_both_streams_are_data_sources(latents):
    assert isinstance(latents, experiment.DataSource)
    assert isinstance(datasets.Pixels(source=SCENES), experiment.DataSource)


def test_pixels_lie_between_minus_one_and_one():
    ((_, example),) = datasets.Pixels(source=SCENES, size=(16, 16)).examples()
    x0 = example.x0
    assert x0.shape == (1, 1, 16, 16, 3)
    assert -1 <= x0.min() < x0.max() <= 1


def test_pixels_in_memory_are_the_same_stream_a_batch_at_a_time():
    plain, held = datasets.Pixels(source=SCENES, seed=3), datasets.Pixels(source=InMemory(SCENES), seed=3)
    for shard in ((0, 1), (1, 2)):
        given, expected = held.batches(16, 8, *shard), plain.batches(16, 8, *shard)
        for _ in range(4):  # into the next epoch
            np.testing.assert_array_equal(next(given).x0, next(expected).x0)


def test_latents_are_the_normalised_means_of_the_pictures_they_belong_to(latents, codec_path):
    vae, params = weights.load(codec_path)
    batch = next(latents.batches(0, 8))
    captions = {SCENES[i]["caption"]: SCENES[i]["pixels"] for i in range(len(SCENES))}
    for x0, ids, mask in zip(batch.x0, batch.cond.text_ids, batch.cond.text_mask, strict=True):
        caption = bytes(int(i) - byte_groups.FIRST_BYTE for i in ids[mask][1:]).decode()
        pixels = jnp.asarray(captions[caption][None] / np.float32(127.5) - 1, jnp.float32)
        expected = vae.normalize(vae.encode(params, pixels)[0])[0]
        np.testing.assert_allclose(x0, expected, rtol=1e-5, atol=1e-5)


def test_a_stream_resumes_at_any_position(latents):
    whole = [next(stream).x0 for stream in [latents.batches(0, 6)] for _ in range(5)]
    resumed = next(latents.batches(18, 6)).x0
    np.testing.assert_array_equal(whole[3], resumed)


def test_two_shards_make_up_the_batch_of_one(latents):
    one = next(latents.batches(6, 6)).x0
    parts = [next(latents.batches(6, 6, shard, 2)).x0 for shard in range(2)]
    np.testing.assert_array_equal(one, np.concatenate(parts))


def test_latents_can_be_read_from_the_cache_instead_of_memory(latents):
    on_disk = dataclasses.replace(latents, in_memory=False)
    np.testing.assert_array_equal(next(on_disk.batches(0, 4)).x0, next(latents.batches(0, 4)).x0)


def test_facts_are_known_before_anything_is_encoded_and_the_same_afterwards(latents, tmp_path):
    fresh = dataclasses.replace(latents, cache_path=str(tmp_path))
    before = fresh.describe()
    assert not list(tmp_path.iterdir())
    progress = []
    fresh.encode(lambda done, total: progress.append((done, total)))
    assert progress == [(24, 24)]
    assert before == fresh.describe() == {"latent_shape": [1, 4, 4, 4], "text_length": 64, "samples": 24}
    fresh.encode(lambda done, total: pytest.fail("all is there"))


def test_a_batch_encoded_over_all_devices_is_that_of_one(latents, tmp_path):
    several = dataclasses.replace(latents, cache_path=str(tmp_path), encode_batch=16)
    several.encode()
    for i in range(24):
        np.testing.assert_allclose(several.latents[i]["latents"], latents.latents[i]["latents"], rtol=1e-5, atol=1e-5)


def test_another_dtype_or_form_of_storage_has_latents_of_its_own(latents, tmp_path):
    for fields in ({}, {"encode_batch": 8}, {"stored_as": "float16"}, {"encode_dtype": "bfloat16"}):
        other = dataclasses.replace(latents, cache_path=str(tmp_path), **fields)
        np.testing.assert_allclose(other.latents[0]["latents"], latents.latents[0]["latents"], atol=0.05)
        assert next(other.batches(0, 2)).x0.dtype == np.float32
    assert len(list(tmp_path.iterdir())) == 3


def test_the_fingerprint_follows_the_data(latents, codec_path):
    other = dataclasses.replace(latents, source=source.Scenes(seed=1, length=24))
    assert latents.fingerprint() != other.fingerprint()
    assert latents.fingerprint() == dataclasses.replace(latents).fingerprint()


def test_captions_are_read_as_the_encoder_of_the_network_reads_them(latents):
    words = text.WordTextEncoder(length=20)
    bare = dataclasses.replace(latents, text_encoder=None)
    batch = next(bare.with_text_encoder(words).batches(0, 4))
    assert batch.cond.text_ids.shape == (4, 20, words.word_bytes)
    captions = {SCENES[i]["caption"] for i in range(len(SCENES))}
    expected = {ids.tobytes() for ids in words.tokenize(sorted(captions)).ids}
    assert {ids.tobytes() for ids in batch.cond.text_ids} <= expected
    assert bare.with_text_encoder(words).describe()["text_length"] == 20


def test_data_without_an_encoder_says_what_would_read_its_captions(latents):
    bare = dataclasses.replace(latents, text_encoder=None)
    for use in (bare.describe, bare.examples, bare.fingerprint):
        with pytest.raises(ValueError, match=r"nothing reads the captions: .*TextToLatent.*T5TextEncoder"):
            use()


def test_data_that_names_another_encoder_than_the_network_trains_is_refused(latents):
    assert latents.with_text_encoder(BYTES) == latents
    with pytest.raises(ValueError, match=r"(?s)network trains WordTextEncoder.* and the data names ByteTextEncoder"):
        latents.with_text_encoder(text.WordTextEncoder())


def test_a_source_that_knows_the_truth_offers_what_scores_models_of_it(latents, codec_path):
    assert latents.scorer(2).world == SCENES.world
    assert len(latents.scorer(2).prompts) == 12
    unknown = dataclasses.replace(latents, source=sources.Arrays(np.zeros((2, 1, 8, 8, 3), np.uint8), name="pixels"))
    for data in (unknown, datasets.Pixels(source=[])):
        assert data.scorer(2) is data.exam(2) is None


def test_pixels_have_no_captions_to_read():
    pixels = datasets.Pixels(source=SCENES)
    assert pixels.with_text_encoder(BYTES) is pixels


@pytest.fixture(scope="module")
def frozen(latents, tmp_path_factory):
    """The same images, their captions read by a frozen encoder that cuts the longest of them."""
    path = tmp_path_factory.mktemp("t5")
    tiny_t5.write_folder(path)
    return dataclasses.replace(latents, text_encoder=T5TextEncoder(path=str(path), length=12))


def test_states_of_a_frozen_encoder_are_kept_beside_the_latents_and_the_same_as_made_anew(frozen, latents):
    anew, on_disk = (
        dataclasses.replace(frozen, **changes) for changes in ({"caches_text": False}, {"in_memory": False})
    )
    kept, made, read = (next(data.batches(3, 4)) for data in (frozen, anew, on_disk))
    for batch in (kept, made, read):
        assert batch.cond.text.shape == (4, 12, 16)
        assert batch.cond.text.dtype == np.float32
        assert batch.cond.text_ids is None
        np.testing.assert_array_equal(batch.x0, next(latents.batches(3, 4)).x0)
        np.testing.assert_array_equal(batch.cond.text_mask, made.cond.text_mask)
        np.testing.assert_allclose(batch.cond.text, made.cond.text, rtol=1e-3, atol=1e-3)  # half precision
        assert batch.cond.text[batch.cond.text_mask].any(-1).all()
    np.testing.assert_array_equal(kept.cond.text, read.cond.text)
    assert (kept.cond.text != made.cond.text).any(), "states are kept in half precision"
    assert not made.cond.text_mask.all()


def test_states_belong_to_the_caption_of_their_picture(frozen):
    batch = next(frozen.batches(0, 8))
    plain = next(dataclasses.replace(frozen, text_encoder=BYTES).batches(0, 8))
    captions = [bytes(int(i) - byte_groups.FIRST_BYTE for i in ids[mask][1:]).decode()
                for ids, mask in zip(plain.cond.text_ids, plain.cond.text_mask, strict=True)]  # fmt: skip
    encoder = frozen.text_encoder
    expected, mask = weights.encode_text(encoder, *encoder.tokenize(captions, truncate=True))
    np.testing.assert_allclose(batch.cond.text, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(batch.cond.text_mask, mask)


def test_another_encoder_has_a_cache_of_its_own(frozen, latents, tmp_path):
    here = dataclasses.replace(frozen, cache_path=str(tmp_path))
    for length in (8, 12, 8):
        encoder = dataclasses.replace(frozen.text_encoder, length=length)
        assert next(dataclasses.replace(here, text_encoder=encoder).batches(0, 2)).cond.text.shape == (2, length, 16)
    assert len(list(tmp_path.iterdir())) == 2
    next(dataclasses.replace(here, caches_text=False).batches(0, 2))
    next(dataclasses.replace(here, text_encoder=BYTES).batches(0, 2))
    assert len(list(tmp_path.iterdir())) == 3, "without states all encoders share one"


def test_a_caption_or_picture_corrected_in_place_is_encoded_anew_in_the_same_process(codec_path, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        PIL.Image.fromarray(np.full((32, 32, 3), 40 * i, np.uint8)).save(folder / f"{i}.bmp.png", compress_level=0)
        (folder / f"{i}.bmp.txt").write_text("a rad circle")

    def open_data():
        data = datasets.CaptionedLatents(
            source=sources.Folder(folder), codec_path=codec_path, cache_path=str(tmp_path / "c"), text_encoder=BYTES
        )
        return [data.latents[i] for i in range(3)]

    first = open_data()
    (folder / "1.bmp.txt").write_text("a red circle")
    PIL.Image.fromarray(np.full((32, 32, 3), 250, np.uint8)).save(folder / "2.bmp.png", compress_level=0)
    second = open_data()
    assert [sample["caption"] for sample in second] == ["a rad circle", "a red circle", "a rad circle"]
    assert [np.array_equal(a["latents"], b["latents"]) for a, b in zip(first, second, strict=True)] == [
        True,
        True,
        False,
    ]


def test_an_autoencoder_trained_again_in_its_folder_is_loaded_again(codec_path, tmp_path):
    path = shutil.copytree(codec_path, tmp_path / "vae")
    vae, params = datasets.load_codec(str(path))
    weights.save(vae, jax.tree.map(lambda leaf: leaf + 1, params), path)
    changed = datasets.load_codec(str(path))[1]
    assert all((a + 1 == b).all() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(changed), strict=True))
