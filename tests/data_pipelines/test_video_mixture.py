"""Clips, images and films as batches: shapes, half-precision storage, clean references."""

import dataclasses

import jax
import numpy as np
import pytest

from nova_jax import experiment
from tests import tiny_reel


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_reel.make_data(tmp_path_factory.mktemp("reel"))


@pytest.fixture(scope="module")
def batches(data):
    stream = data.batches(0, 4)
    return [next(stream) for _ in range(3)]


@pytest.mark.long
def test_parts_differ_in_frames_rows_and_references(data, batches):
    assert isinstance(data, experiment.DataSource)
    assert [batch.x0.shape for batch in batches] == [(4, 3, 4, 4, 4), (12, 1, 4, 4, 4), (4, 3, 4, 4, 4)]
    assert all(batch.x0.dtype == np.float32 for batch in batches)
    videos, images, films = (batch.cond for batch in batches)
    assert videos.frames is images.frames is None
    assert films.frames.shape == (4, 3, 4, 4, 4)
    assert all(cond.task is None for cond in (videos, images, films))


@pytest.mark.long
def test_references_are_clean_and_empty_places_say_nothing(batches):
    frames, times = batches[2].cond.frames, batches[2].cond.frame_times
    assert set(np.unique(times)) <= {0.0, 1.0}
    assert (times[:, 0] == 0).all()
    assert not frames[times == 1].any()
    assert (np.abs(frames[times == 0]).max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.long
def test_latents_are_kept_in_half_the_space_and_are_those_of_the_autoencoder(data):
    part = data.parts[0][0]
    kept = part.latents[1]["latents"]
    assert kept.dtype == np.float16
    codec, params = part.codec()
    pixels = part.sources[0][1]["pixels"][None].astype(np.float32)
    exact = jax.jit(lambda pixels: codec.normalize(codec.encode(params, pixels / 127.5 - 1.0)[0]))(pixels)[0]
    np.testing.assert_allclose(kept, exact, rtol=2e-3, atol=1e-3)
    whole = dataclasses.replace(part, stored_as="float32")
    assert whole.latents[1]["latents"].dtype == np.float32
