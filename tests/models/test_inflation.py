"""An inflated autoencoder does frame by frame what it grew from did with images."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.models import inflation
from nova_jax.models import vae as vaes
from tests.models.autoencoders import pixels_for, random_params

VIDEO = vaes.small_video(width=8, latent_channels=3)
IMAGE = inflation.without_time(VIDEO)


@functools.cache
def inflated():
    return inflation.inflate(IMAGE, random_params(IMAGE), VIDEO)


def latents_for(frames):
    return 0.5 * jax.random.normal(jax.random.key(3), (1, frames, 2, 1, VIDEO.latent_channels))


def test_the_preset_for_pictures_is_the_one_for_video_without_time():
    assert vaes.small_image() == inflation.without_time(vaes.small_video())
    assert vaes.small_image(width=8, latent_channels=3) == IMAGE


def test_inflation_makes_all_parameters_of_the_video_network():
    shapes = jax.eval_shape(VIDEO.init, jax.random.key(0))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), shapes) == jax.tree.map(lambda a: (a.shape, a.dtype), inflated())


def test_one_frame_is_encoded_and_decoded_as_before_to_the_bit():
    image, latents = pixels_for(VIDEO, 1), latents_for(1)
    for ours, theirs in zip(
        jax.jit(VIDEO.encode)(inflated(), image), jax.jit(IMAGE.encode)(random_params(IMAGE), image), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(
        jax.jit(VIDEO.decode)(inflated(), latents), jax.jit(IMAGE.decode)(random_params(IMAGE), latents)
    )


def test_the_latents_of_a_video_are_those_of_the_last_frame_of_each_group():
    pixels = pixels_for(VIDEO, 5)
    expected, _ = jax.jit(IMAGE.encode)(random_params(IMAGE), pixels[:, ::4])
    mean, _ = jax.jit(VIDEO.encode)(inflated(), pixels)
    np.testing.assert_allclose(mean, expected, atol=1e-5)


def test_a_decoded_video_repeats_the_picture_of_each_latent():
    latents = latents_for(2)
    pictures = jax.jit(IMAGE.decode)(random_params(IMAGE), latents)
    expected = jnp.concatenate([pictures[:, :1], jnp.repeat(pictures[:, 1:], 4, axis=1)], axis=1)
    np.testing.assert_allclose(jax.jit(VIDEO.decode)(inflated(), latents), expected, atol=1e-5)


def test_taps_in_time_are_kept_where_only_halvings_are_new():
    causal = dataclasses.replace(VIDEO, halves_time=(False, False))
    params = random_params(causal)
    inflated = inflation.inflate(causal, params, VIDEO)
    np.testing.assert_array_equal(inflated["encoder"]["conv_in"]["kernel"], params["encoder"]["conv_in"]["kernel"])
    again = inflation.inflate(VIDEO, inflated, VIDEO)
    jax.tree.map(np.testing.assert_array_equal, again, inflated)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 16, "num_blocks": 2}, "width is 8 in the first and 16 in the second; .*num_blocks is 1"),
        ({"halves_space": ()}, r"halves_space is \(True, False\) in the first and \(True, True\)"),
        ({"has_shortcuts": True}, "has_shortcuts is False"),
    ],
)
def test_networks_that_differ_in_more_than_time_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        inflation.inflate(IMAGE, random_params(IMAGE), dataclasses.replace(VIDEO, **changes))


def test_time_is_never_taken_away_and_shortcuts_are_not_averaged_over():
    with pytest.raises(ValueError, match=r"is_temporal is True in the first.*halves_time is \(True, True\)"):
        inflation.inflate(VIDEO, inflated(), IMAGE)
    shortcuts = dataclasses.replace(VIDEO, has_shortcuts=True)
    inflation.check(inflation.without_time(shortcuts), dataclasses.replace(shortcuts, halves_time=(False, False)))
    with pytest.raises(ValueError, match="has_shortcuts is True: shortcuts average over frames"):
        inflation.inflate(inflation.without_time(shortcuts), random_params(IMAGE), shortcuts)
