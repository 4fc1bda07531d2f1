import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import embeddings, norms
from nova_jax.models import dit, features, text, text_to_latent
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules
from nova_jax.types import Conditioning

DEPTH = 3
DENOISER = dit.DiT(
    width=16, depth=DEPTH, num_heads=2, in_channels=3, text_dim=8, freq_dim=8, num_frame_roles=1, remat="none"
)
WITH_TEXT = text_to_latent.TextToLatent(
    dit=DENOISER, text_encoder=text.ByteTextEncoder(width=8, depth=1, num_heads=2, byte_width=4)
)
NETWORKS = pytest.mark.parametrize("network", [DENOISER, WITH_TEXT], ids=["dit", "text_to_latent"])


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, T = normal(2, 2, 4, 4, 3), jnp.asarray([0.3, 0.8])
IDS = jnp.asarray(text.encode_bytes(["a red cube", "zwei Bälle"], 16)[0])


def cond_of(network):
    return Conditioning(text_ids=IDS) if network is WITH_TEXT else Conditioning(text=normal(2, 4, 8, seed=1))


def denoiser_of(params):
    return params.get("dit", params)


def with_blocks(params, blocks):
    """The parameters with other blocks in the denoiser."""
    changed = {**denoiser_of(params), "blocks": blocks}
    return {**params, "dit": changed} if "dit" in params else changed


@functools.cache
def params_of(network):
    """Parameters that are all random, those that start at zero included."""
    shapes = jax.eval_shape(network.init, jax.random.key(0), X, T)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), shapes)


@functools.cache
def compiled(network, depth):
    return jax.jit(functools.partial(features.hidden_tokens, network, depth=depth))


def tokens_of(network, depth):
    return np.asarray(compiled(network, depth)(params_of(network), X, T, cond_of(network)))


def test_the_head_on_the_tokens_after_all_layers_is_the_prediction():
    # Without what modulates it the head is a norm and a linear layer.
    params = params_of(DENOISER)
    still = {name: jax.tree.map(jnp.zeros_like, params[name]) for name in ("time_embed", "head_modulation")}
    params = {**params, **still}
    tokens = compiled(DENOISER, DEPTH)(params, X, T, cond_of(DENOISER))
    patches = norms.standardize(tokens, DENOISER.eps) @ params["head"]["kernel"] + params["head"]["bias"][None, None]
    by_hand = embeddings.unpatchify(patches.reshape(2, 2, 2, 2, 12), DENOISER.patch_size)
    prediction = jax.jit(DENOISER.apply)({"params": params}, X, T, cond_of(DENOISER))
    assert np.abs(prediction).max() > 0.1
    np.testing.assert_allclose(by_hand, prediction, atol=1e-5)


@pytest.mark.long
@NETWORKS
def test_tokens_after_k_layers_are_those_of_a_network_of_depth_k(network):
    params = params_of(network)
    blocks = jax.tree.map(lambda stacked: stacked[:2], denoiser_of(params)["blocks"])
    shallow = DENOISER.clone(depth=2)
    shallow = network.clone(dit=shallow) if network is WITH_TEXT else shallow
    expected = jax.jit(functools.partial(shallow.apply, method="hidden_tokens"))(
        {"params": with_blocks(params, blocks)}, X, T, cond_of(network)
    )
    assert expected.shape == (2, 8, 16)
    np.testing.assert_allclose(tokens_of(network, 2), expected, atol=1e-6)
    assert np.abs(expected - tokens_of(network, 3)).max() > 1e-2


@NETWORKS
def test_later_layers_and_the_head_are_not_read(network):
    params = params_of(network)
    blocks = jax.tree.map(lambda stacked: stacked.at[2:].set(jnp.nan), denoiser_of(params)["blocks"])
    broken = with_blocks(params, blocks)
    denoiser_of(broken)["head"] = jax.tree.map(lambda a: a * jnp.nan, denoiser_of(params)["head"])
    np.testing.assert_array_equal(compiled(network, 2)(broken, X, T, cond_of(network)), tokens_of(network, 2))


@pytest.mark.long
def test_gradients_reach_x_the_text_encoder_and_the_first_layers_and_nothing_else():
    def energy(params, x):
        return jnp.sum(features.hidden_tokens(WITH_TEXT, params, x, T, cond_of(WITH_TEXT), depth=2) ** 2)

    by_params, by_x = jax.jit(jax.grad(energy, argnums=(0, 1)))(params_of(WITH_TEXT), X)
    assert np.all(np.abs(by_x).max((1, 4)) > 0)
    assert np.any(by_params["text_encoder"]["embed"]["embedding"])
    matrices = [leaf for leaf in jax.tree.leaves(by_params["dit"]["blocks"]) if leaf.ndim == 3]
    assert all(np.any(leaf[:2], axis=(1, 2)).all() and not np.any(leaf[2:]) for leaf in matrices)
    of_the_head = by_params["dit"]["head"], by_params["dit"]["head_modulation"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_the_head))


def test_tokens_of_extra_frames_come_last():
    frames = normal(2, 1, 4, 4, 3, seed=2)
    run = compiled(DENOISER, 1)
    assert run(params_of(DENOISER), X, T, cond_of(DENOISER)._replace(frames=frames)).shape == (2, 12, 16)


def test_a_network_that_is_cut_once_gives_the_same_tokens():
    network, params = features.first_layers(WITH_TEXT, params_of(WITH_TEXT), 2)
    assert network.dit.depth == 2
    assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(params["dit"]["blocks"]))
    again = compiled(network, 2)(params, X, T, cond_of(WITH_TEXT))
    np.testing.assert_allclose(again, tokens_of(WITH_TEXT, 2), atol=1e-6)


def test_a_loop_that_is_unrolled_over_the_whole_depth_may_be_cut():
    run = compiled(DENOISER.clone(scan_unroll=DEPTH), 2)
    tokens = run(params_of(DENOISER), X, T, cond_of(DENOISER))
    np.testing.assert_allclose(tokens, tokens_of(DENOISER, 2), atol=1e-5)


@pytest.mark.long
def test_sharded_tokens_equal_unsharded_ones():
    mesh = meshes.MeshConfig(data=2, fsdp=2, tensor=2).make()
    params = params_of(WITH_TEXT)
    placed = jax.device_put(params, rules.shardings(params, mesh))
    with jax.set_mesh(mesh):  # not `compiled`, which was traced without a mesh
        run = jax.jit(functools.partial(features.hidden_tokens, WITH_TEXT, depth=2))
        sharded = run(placed, X, T, cond_of(WITH_TEXT))
    np.testing.assert_allclose(sharded, tokens_of(WITH_TEXT, 2), atol=1e-5)


@pytest.mark.parametrize("depth", [0, DEPTH + 1])
def test_a_depth_that_the_network_does_not_have_is_an_error(depth):
    with pytest.raises(ValueError, match=rf"depth={depth}: this network has layers 1 to 3"):
        features.hidden_tokens(WITH_TEXT, {"dit": {}}, X, T, depth=depth)
