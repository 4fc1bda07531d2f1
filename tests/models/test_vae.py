import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.models import vae as vaes
from nova_jax.models import vae_network
from tests.models.autoencoders import pixels_for, random_params

PLAIN = vaes.VAE(latent_channels=3, width=4, width_multipliers=(1, 2), halves_time=(True,), num_blocks=1)
RESIDUAL = vaes.VAE(
    latent_channels=3,
    width=4,
    decoder_width=6,
    width_multipliers=(1, 2, 2),
    halves_time=(True, True),
    num_blocks=1,
    patch_size=2,
    has_attention=False,
    has_shortcuts=True,
)
TIME_ALONE = vaes.small_video(width=4, latent_channels=3)
ALL = pytest.mark.parametrize(
    "vae",
    [PLAIN, RESIDUAL, pytest.param(TIME_ALONE, marks=pytest.mark.slow)],
    ids=["plain", "residual", "time_alone"],
)


def assert_same(a, b):
    np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(
    ("vae", "parameters", "compression"),
    [
        (vaes.wan21(), 126_892_531, (4, 8, 8)),  # diffusers' AutoencoderKLWan with its default config
        (vaes.wan22(), 704_688_668, (4, 16, 16)),  # the same with the config of Wan2.2-TI2V-5B
        (vaes.tiny(), 728_468, (1, 4, 4)),
        (vaes.small_video(), 3_081_052, (4, 4, 4)),
        (vaes.tiny_video(), 3_203_328, (4, 4, 4)),
        (vaes.small_image(), 1_043_932, (1, 4, 4)),
    ],
    ids=["wan21", "wan22", "tiny", "small_video", "tiny_video", "small_image"],
)
def test_presets_have_the_published_sizes(vae, parameters, compression):
    shapes = jax.eval_shape(vae.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    assert vae.compression == compression
    assert all(
        leaf.ndim == 5 for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if "kernel" in str(path[-1])
    )


def test_a_video_of_6_seconds_has_the_latents_the_transformer_expects():
    assert vaes.wan22().latent_shape(145, 704, 1280) == (37, 44, 80, 48)


def test_encode_and_decode_have_the_declared_shapes():
    vae, params, (time, _, _) = RESIDUAL, random_params(RESIDUAL), RESIDUAL.compression
    pixels = pixels_for(vae, 1 + 2 * time)
    mean, logvar = jax.eval_shape(vae.encode, params, pixels)
    assert mean.shape == logvar.shape == (1, *vae.latent_shape(*pixels.shape[1:4]))
    assert jax.eval_shape(vae.decode, params, mean).shape == pixels.shape


@ALL
def test_no_latent_depends_on_a_later_frame(vae):
    params, (time, _, _) = random_params(vae), vae.compression
    pixels = pixels_for(vae, 1 + 2 * time)
    gradients = jax.jit(jax.jacrev(lambda x: vae.encode(params, x)[0].sum((0, 2, 3, 4))))(pixels)
    depends = np.abs(gradients).max((1, 3, 4, 5)) > 0  # latent x frame
    for latent in range(3):
        assert depends[latent].tolist() == [frame <= latent * time for frame in range(1 + 2 * time)]


@pytest.mark.long
@ALL
def test_no_pixel_depends_on_a_later_latent(vae):
    params, (time, _, _) = random_params(vae), vae.compression
    latents = jax.random.normal(jax.random.key(3), (1, 3, 2, 1, vae.latent_channels))
    gradients = jax.jit(jax.jacrev(lambda z: vae.decode_unclipped(params, z).sum((0, 2, 3, 4))))(latents)
    depends = np.abs(gradients).max((1, 3, 4, 5)) > 0  # frame x latent
    for frame in range(1 + 2 * time):
        assert not depends[frame, 1 + -(-frame // time) :].any()
        assert depends[frame, -(-frame // time)]


@pytest.mark.long
@pytest.mark.parametrize(
    ("vae", "lengths"),
    [
        (PLAIN, (2, 1)),
        (TIME_ALONE, (1, 2)),
        pytest.param(PLAIN, (1, 2), marks=pytest.mark.slow),
        pytest.param(RESIDUAL, (1, 1, 1), marks=pytest.mark.slow),
    ],
)
def test_chunks_of_any_length_give_the_result_of_the_whole_video(vae, lengths):
    params, (time, _, _) = random_params(vae), vae.compression
    pixels = pixels_for(vae, 1 + 2 * time)
    ends = np.cumsum(lengths)[:-1]

    mean, logvar = jax.jit(vae.encode)(params, pixels)
    chunks = jnp.split(pixels, 1 + (ends - 1) * time, axis=1)
    means, logvars = zip(*vae.encode_stream(params, chunks), strict=True)
    assert_same(jnp.concatenate(means, axis=1), mean)
    assert_same(jnp.concatenate(logvars, axis=1), logvar)

    latents = 0.5 * jax.random.normal(jax.random.key(3), mean.shape)
    decoded = jnp.concatenate(list(vae.decode_stream(params, jnp.split(latents, ends, axis=1))), axis=1)
    assert_same(decoded, jax.jit(vae.decode)(params, latents))


def test_the_cache_travels_through_scan_after_the_first_chunk():
    vae, params = PLAIN, random_params(PLAIN)
    latents = 0.5 * jax.random.normal(jax.random.key(3), (1, 3, 2, 1, vae.latent_channels))

    @jax.jit
    def decode(latents):
        first, cache = vae.decode_chunk(params, latents[:, :1])

        def step(cache, latent):
            pixels, cache = vae.decode_chunk(params, latent, cache)
            return cache, pixels

        _, rest = jax.lax.scan(step, cache, jnp.moveaxis(latents[:, 1:], 1, 0)[:, :, None])
        rest = jnp.moveaxis(rest, 0, 1)
        return jnp.concatenate([first, rest.reshape(1, -1, *first.shape[2:])], axis=1)

    assert_same(decode(latents), jax.jit(vae.decode)(params, latents))


def test_the_cache_has_the_same_size_after_every_chunk():
    vae, params, (time, _, _) = RESIDUAL, random_params(RESIDUAL), RESIDUAL.compression
    caches = []
    for frames in (1, time, 3 * time):
        _, _, cache = jax.eval_shape(vae.encode_chunk, params, pixels_for(vae, frames), caches[-1] if caches else None)
        caches.append(cache)
    *_, whole = jax.eval_shape(vae.encode_chunk, params, pixels_for(vae, 1 + 8 * time))
    assert caches == [whole] * 3


@pytest.mark.long
def test_an_image_is_encoded_and_decoded_by_the_last_taps_alone_bit_for_bit():
    """The same 2-D kernels make a model of images; a video model that starts from them changes no image (inflation)."""
    params = random_params(PLAIN)
    image_vae = dataclasses.replace(PLAIN, halves_time=(False,), is_temporal=False)
    shapes = jax.eval_shape(image_vae.init, jax.random.key(0))

    def last_tap(path, _):
        value = functools.reduce(lambda node, key: node[key.key], path, params)
        return value[-1:] if value.ndim == 5 else value

    image_params = jax.tree_util.tree_map_with_path(last_tap, shapes)
    image = pixels_for(PLAIN, 1)
    for ours, theirs in zip(
        jax.jit(PLAIN.encode)(params, image), jax.jit(image_vae.encode)(image_params, image), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    latents = jax.random.normal(jax.random.key(3), (1, 1, 2, 1, 3))
    np.testing.assert_array_equal(
        jax.jit(PLAIN.decode)(params, latents), jax.jit(image_vae.decode)(image_params, latents)
    )


def test_independent_frames_are_encoded_one_by_one():
    vae = vaes.tiny(width=8, num_blocks=1)
    params, pixels, encode = random_params(vae), pixels_for(vae, 3), jax.jit(vae.encode)
    mean, _ = encode(params, pixels)
    for i in range(3):
        np.testing.assert_allclose(encode(params, pixels[:, i : i + 1])[0], mean[:, i : i + 1], atol=1e-5)


def test_new_parameters_start_with_residual_blocks_that_pass_their_input():
    x = jax.random.normal(jax.random.key(0), (1, 2, 4, 4, 5))
    variant = vae_network.Variant(taps=3, has_attention=True, has_shortcuts=False, dtype=jnp.float32)
    middle = vae_network.Middle(variant)
    (y, _), _ = jax.jit(lambda key: middle.init_with_output(key, x, None))(jax.random.key(1))
    np.testing.assert_array_equal(y, x)


def test_shortcuts_average_and_repeat_so_that_up_then_down_is_the_identity():
    x = jax.random.normal(jax.random.key(0), (1, 4, 4, 6, 8))
    up = vae_network.repeat_up(x, 4, 2, 2)
    assert up.shape == (1, 8, 8, 12, 4)
    np.testing.assert_allclose(vae_network.average_down(up, 8, 2, 2), x, atol=1e-6)


def test_decoded_pixels_are_limited_but_training_pixels_are_not():
    vae = vaes.tiny(width=8, num_blocks=1)
    params = random_params(vae)
    latents = 30 * jax.random.normal(jax.random.key(3), (1, 1, 4, 4, 4))
    unclipped = jax.jit(vae.decode_unclipped)(params, latents)
    assert np.abs(unclipped).max() > 1
    np.testing.assert_allclose(jax.jit(vae.decode)(params, latents), jnp.clip(unclipped, -1, 1), atol=1e-5)


def test_normalised_latents_of_the_public_model_use_its_statistics():
    vae = vaes.wan21()
    latents = jax.random.normal(jax.random.key(0), (2, 3, 4, 5, 16))
    normal = vae.normalize(latents)
    mean, std = np.array(vae.latents_mean), np.array(vae.latents_std)
    np.testing.assert_allclose(normal, (np.asarray(latents) - mean) / std, atol=1e-5)
    np.testing.assert_allclose(vae.denormalize(normal), latents, atol=1e-5)


def test_samples_have_the_posterior_mean_and_variance():
    shape = (1, 1, 200, 200, 2)
    mean, logvar = jnp.full(shape, 0.5), jnp.full(shape, -1.0)
    draws = vaes.tiny(latent_channels=2).sample(mean, logvar, jax.random.key(0))
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.var()) == pytest.approx(np.exp(-1.0), abs=0.01)


@pytest.mark.long
def test_pixels_to_normalised_latents_and_back_compose_the_parts():
    vae = vaes.tiny(width=8, num_blocks=1, latents_mean=(1.0,) * 4, latents_std=(2.0,) * 4)
    params, pixels = random_params(vae), pixels_for(vae, 2)
    latents = jax.jit(vae.to_latents)(params, pixels)
    np.testing.assert_allclose(latents, (jax.jit(vae.encode)(params, pixels)[0] - 1) / 2, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(vae.to_pixels)(params, latents), jax.jit(vae.decode)(params, 2 * latents + 1), atol=1e-5
    )
    assert not np.array_equal(jax.jit(vae.to_latents)(params, pixels, jax.random.key(0)), latents)


def test_bfloat16_computation_returns_float32_close_to_the_float32_result():
    vae = vaes.tiny(width=16, num_blocks=1)
    params, pixels = random_params(vae), pixels_for(vae, 1)
    exact, _ = jax.jit(vae.encode)(params, pixels)
    mean, _ = jax.jit(dataclasses.replace(vae, dtype=jnp.bfloat16).encode)(params, pixels)
    assert mean.dtype == jnp.float32
    np.testing.assert_allclose(mean, exact, atol=0.05 * np.abs(exact).max())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_size": 0}, "patch_size must be 1 or more"),
        ({"halves_time": (True,)}, "halves_time has 1 entries for the 3 halvings"),
        ({"halves_space": (True,)}, "halves_space has 1 entries and halves_time 3"),
        ({"is_temporal": False}, "is_temporal=True"),
        ({"latents_std": (1.0, 2.0)}, "latents_std has 2 entries"),
    ],
)
def test_fields_that_do_not_fit_together_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        vaes.wan21(**fields)


def test_widths_that_shortcuts_cannot_join_are_refused():
    with pytest.raises(ValueError, match="no shortcut from 4 to 20 channels"):
        jax.eval_shape(dataclasses.replace(RESIDUAL, width_multipliers=(1, 5, 5)).init, jax.random.key(0))


@pytest.mark.parametrize(
    ("size", "message"),
    [((3, 16, 16), r"1 \+ 4 n frames"), ((0, 16, 16), "after the first frame"), ((5, 20, 16), "multiples of 8")],
)
def test_sizes_without_latents_are_refused(size, message):
    with pytest.raises(ValueError, match=message):
        vaes.wan21().latent_shape(*size)
