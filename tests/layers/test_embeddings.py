import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import embeddings


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_timestep_features_are_cosines_then_sines_of_geometric_frequencies():
    t = jnp.array([[0.0, 3.0], [12.5, 731.0]])
    features = embeddings.timestep_features(t, 6)
    frequencies = 10_000.0 ** (-np.arange(3) / 3)
    angle = np.asarray(t)[..., None] * frequencies
    np.testing.assert_allclose(features, np.concatenate([np.cos(angle), np.sin(angle)], -1), atol=1e-4)


def test_an_odd_number_of_timestep_features_is_an_error():
    with pytest.raises(ValueError, match="odd"):
        embeddings.timestep_features(jnp.zeros(2), 5)


def test_every_place_of_a_grid_has_features_of_its_own():
    features = embeddings.grid_features(5, 7).reshape(35, -1)
    apart = np.abs(features[:, None] - features[None]).max(-1) + np.eye(35)
    assert apart.min() > 0.1


def test_features_say_which_part_of_the_image_a_place_is_at_any_size_of_the_grid():
    coarse, fine = embeddings.grid_features(2, 3), embeddings.grid_features(6, 9)
    np.testing.assert_allclose(fine[1::3, 1::3], coarse, atol=1e-6)  # the centres of three by three places


@pytest.mark.parametrize("patch_size", [(1, 2, 2), (2, 1, 3), (1, 1, 1)])
def test_patchify_and_unpatchify_are_inverse(patch_size):
    x = normal(2, 4, 6, 6, 5)
    tokens = jax.jit(embeddings.patchify, static_argnums=1)(x, patch_size)
    assert tokens.size == x.size
    np.testing.assert_array_equal(jax.jit(embeddings.unpatchify, static_argnums=1)(tokens, patch_size), x)


def test_a_token_holds_its_own_patch_row_by_row():
    x = np.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6, 1)
    tokens = np.asarray(embeddings.patchify(jnp.asarray(x), (1, 2, 3)))
    np.testing.assert_array_equal(tokens[0, 1, 0, 1], x[0, 1, 0:2, 3:6, 0].ravel())


def test_latents_that_do_not_divide_into_patches_are_an_error():
    with pytest.raises(ValueError, match=r"1 x 5 x 4 .* 1 x 2 x 2"):
        embeddings.patchify(jnp.zeros((1, 1, 5, 4, 3)), (1, 2, 2))


def test_an_embedder_with_zero_output_weights_returns_zeros_and_learns():
    layer = embeddings.Embedder(6, out_init=jax.nn.initializers.zeros)
    x = normal(2, 4)
    variables = jax.jit(layer.init)(jax.random.key(1), x)
    assert jnp.all(layer.apply(variables, x) == 0)
    gradient = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x))))(variables)["params"]
    assert jnp.any(gradient["out"]["kernel"] != 0)
