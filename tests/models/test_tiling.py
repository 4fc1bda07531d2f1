"""One tile is the whole image; many agree with it away from seams, over time, and on eight devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.models import tiling
from nova_jax.models import vae as vaes
from nova_jax.parallel.mesh import MeshConfig
from tests.models.autoencoders import random_params

VAE = vaes.VAE(
    latent_channels=3,
    width=4,
    width_multipliers=(1, 1),
    halves_time=(True,),
    num_blocks=1,
    has_attention=False,
)
TILES = tiling.Tiles(size=(4, 6), overlap=2)


def latents_for(frames=2, height=9, width=14):
    return np.random.default_rng(0).standard_normal((1, frames, height, width, 3), np.float32)


def pixels_for(frames=3, height=12, width=20):
    return np.random.default_rng(1).uniform(-1, 1, (1, frames, height, width, 3)).astype(np.float32)


def test_weights_sum_to_one_everywhere():
    for extent, size, overlap in [(9, 4, 2), (44, 24, 4), (80, 24, 4), (5, 8, 2), (7, 5, 4)]:
        for scale in [1, 4]:
            total, covered = np.zeros(extent * scale), np.zeros(extent * scale)
            for tile in tiling.Tiles(size=(size, size), overlap=overlap).place(extent, 1, scale):
                rows = slice(tile.row, tile.row + len(tile.row_weights))
                total[rows] += tile.row_weights
                covered[rows] += 1
            np.testing.assert_allclose(total, 1, atol=1e-6)
            assert (covered > 0).all()


def test_neighbours_share_the_overlap_and_blend_linearly():
    first, second = tiling.Tiles(size=(5, 5), overlap=2).place(8, 5)
    np.testing.assert_allclose(first.row_weights, [1, 1, 1, 2 / 3, 1 / 3])
    np.testing.assert_allclose(second.row_weights, [1 / 3, 2 / 3, 1, 1, 1])
    assert (first.row, second.row) == (0, 3)


def test_all_tiles_have_the_same_size_inside_the_picture():
    for tile in TILES.place(9, 14):
        assert (len(tile.row_weights), len(tile.column_weights)) == TILES.size
        assert tile.row + 4 <= 9
        assert tile.column + 6 <= 14


@pytest.mark.long
def test_one_tile_that_covers_the_picture_gives_the_whole_result_to_the_bit():
    cover, latents, pixels = tiling.Tiles(size=(16, 16)), latents_for(), pixels_for()
    np.testing.assert_array_equal(
        tiling.decode(VAE, random_params(VAE), latents, cover),
        jax.jit(VAE.decode_chunk)(random_params(VAE), latents)[0],
    )
    for ours, whole in zip(
        tiling.encode(VAE, random_params(VAE), pixels, cover),
        jax.jit(VAE.encode_chunk)(random_params(VAE), pixels)[:2],
        strict=True,
    ):
        np.testing.assert_array_equal(ours, whole)


def test_away_from_seams_a_tile_agrees_with_the_whole_picture():
    """Receptive fields are finite without attention: one long tile of two sees all that its far half depends on."""
    latents = latents_for(frames=1, height=4, width=40)
    tiled = tiling.decode(VAE, random_params(VAE), latents, tiling.Tiles(size=(30, 30), overlap=16))
    whole = np.asarray(jax.jit(VAE.decode)(random_params(VAE), latents))
    np.testing.assert_allclose(tiled[:, :, :, :20], whole[:, :, :, :20], atol=1e-5)
    assert np.abs(tiled - whole).max() > 1e-4


@pytest.mark.long
@pytest.mark.parametrize("what", ["encode", "decode"])
def test_tiles_carry_their_own_past_from_chunk_to_chunk(what):
    if what == "decode":
        whole = latents_for()
        once = [tiling.decode(VAE, random_params(VAE), whole, TILES)]
        streamed = [[x] for x in tiling.decode_stream(VAE, random_params(VAE), np.split(whole, [1], axis=1), TILES)]
    else:
        whole = pixels_for()
        once = tiling.encode(VAE, random_params(VAE), whole, TILES)
        streamed = list(tiling.encode_stream(VAE, random_params(VAE), np.split(whole, [1], axis=1), TILES))
    for expected, parts in zip(once, zip(*streamed, strict=True), strict=True):
        np.testing.assert_allclose(np.concatenate(parts, axis=1), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.long
def test_the_past_may_be_kept_at_half_the_size():
    half = dataclasses.replace(TILES, cache_dtype=jnp.bfloat16)
    chunks = np.split(latents_for(), [1], axis=1)
    exact = list(tiling.decode_stream(VAE, random_params(VAE), chunks, TILES))
    rounded = list(tiling.decode_stream(VAE, random_params(VAE), chunks, half))
    np.testing.assert_array_equal(rounded[0], exact[0])
    np.testing.assert_allclose(rounded[1], exact[1], atol=0.03)
    assert (rounded[1] != exact[1]).any()


@pytest.mark.long
def test_eight_devices_give_the_result_of_one():
    mesh = MeshConfig(data=-1).make()
    chunks = np.split(latents_for(), [1], axis=1)
    one = list(tiling.decode_stream(VAE, random_params(VAE), chunks, TILES))
    eight = list(tiling.decode_stream(VAE, random_params(VAE), chunks, TILES, mesh=mesh))
    for expected, ours in zip(one, eight, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)
    for ours, expected in zip(
        tiling.encode(VAE, random_params(VAE), pixels_for(), TILES, mesh=mesh),
        tiling.encode(VAE, random_params(VAE), pixels_for(), TILES),
        strict=True,
    ):
        np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_what_cannot_be_tiled_is_refused():
    with pytest.raises(ValueError, match=r"overlap=4 must lie in 0 .. 3, below size=\(4, 6\)"):
        tiling.Tiles(size=(4, 6), overlap=4)
    with pytest.raises(ValueError, match="'stage' is not one of the mesh: data, fsdp"):
        tiling.decode(VAE, random_params(VAE), latents_for(), TILES, mesh=MeshConfig(data=-1).make(), axis="stage")
    with pytest.raises(ValueError, match=r"multiples of 2; got \(11, 20\)"):
        tiling.encode(VAE, random_params(VAE), pixels_for(height=11), TILES)
