"""Streams of batches: shapes and ranges, the latent cache behind them, resumption at any position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import streams
from data_pipelines.scenes import source
from data_pipelines.sources.held import Held
from nova_jax import experiment, weights
from nova_jax.models import text
from nova_jax.models.vae import VAE

SCENES = source.Scenes(length=24)


@pytest.fixture(scope="module")
def codec_path(tmp_path_factory):
    vae = VAE(
        latent_channels=4,
        width=8,
        width_multipliers=(1, 1),
        halves_time=(False,),
        num_blocks=1,
        patch_size=4,
        is_temporal=False,
        has_attention=False,
        latents_mean=(0.5, 0.0, 0.0, 0.0),
        latents_std=(2.0, 1.0, 1.0, 1.0),
    )
    path = tmp_path_factory.mktemp("vae")
    weights.save(vae, vae.init(jax.random.key(0)), path)
    return str(path)


@pytest.fixture(scope="module")
def latents(codec_path, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return streams.CaptionedLatents(source=SCENES, codec_path=codec_path, cache_path=str(cache))


def test_both_streams_are_data_sources(latents):
    assert isinstance(latents, experiment.DataSource)
    assert isinstance(streams.Pixels(source=SCENES), experiment.DataSource)


def test_pixels_lie_between_minus_one_and_one():
    x0 = streams.Pixels(source=SCENES, size=(16, 16)).example().x0
    assert x0.shape == (1, 1, 16, 16, 3)
    assert -1 <= x0.min() < x0.max() <= 1


def test_pixels_in_memory_are_the_same_stream_a_batch_at_a_time():
    plain, held = streams.Pixels(source=SCENES, seed=3), streams.Pixels(source=Held(SCENES, 1), seed=3)
    for shard in ((0, 1), (1, 2)):
        given, expected = held.batches(16, 8, *shard), plain.batches(16, 8, *shard)
        for _ in range(4):  # into the next epoch
            np.testing.assert_array_equal(next(given).x0, next(expected).x0)


def test_latents_are_the_normalised_means_of_the_pictures_they_belong_to(latents, codec_path):
    vae, params = weights.load(codec_path)
    batch = next(latents.batches(0, 8))
    captions = {SCENES[i]["caption"]: SCENES[i]["pixels"] for i in range(len(SCENES))}
    for x0, ids, mask in zip(batch.x0, batch.cond.text_ids, batch.cond.text_mask, strict=True):
        caption = bytes(int(i) - text.FIRST_BYTE for i in ids[mask][1:]).decode()
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
    on_disk = streams.CaptionedLatents(
        source=SCENES, codec_path=latents.codec_path, cache_path=latents.cache_path, in_memory=False
    )
    np.testing.assert_array_equal(next(on_disk.batches(0, 4)).x0, next(latents.batches(0, 4)).x0)


def test_the_fingerprint_follows_the_data(latents, codec_path):
    other = streams.CaptionedLatents(
        source=source.Scenes(seed=1, length=24), codec_path=codec_path, cache_path=latents.cache_path
    )
    assert latents.fingerprint() != other.fingerprint()
    assert (
        latents.fingerprint()
        == streams.CaptionedLatents(source=SCENES, codec_path=codec_path, cache_path=latents.cache_path).fingerprint()
    )
