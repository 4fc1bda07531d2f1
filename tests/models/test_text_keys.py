"""Keys and values of the text made once give what they give when every evaluation makes them, and cost once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.models.dit import DiT
from nova_jax.models.text_keys import with_text_keys
from nova_jax.types import Conditioning

X, T = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1, 4, 4, 3), np.float32)), jnp.array([0.3, 0.8])
SIZES = {"width": 32, "depth": 2, "num_heads": 4, "in_channels": 3, "text_dim": 8, "freq_dim": 8}
NETWORKS = {
    "plain": {},
    "wan": {"qk_norm": "across_heads", "masks_text": False, "gate_init": "random"},
    "editing": {"has_palette": True, "num_tasks": 4, "num_frame_roles": 1, "patch_size": (1, 1, 1)},
    "bfloat16": {"dtype": jnp.bfloat16},
}


def make(name):
    """A network, random parameters and conditions of all kinds that it reads."""
    network, rng = DiT(**SIZES, **NETWORKS[name]), np.random.default_rng(1)
    cond = Conditioning(text=rng.standard_normal((2, 6, 8), np.float32), text_mask=np.arange(6) < np.array([[6], [3]]))
    if name == "editing":
        cond = cond._replace(
            palette=rng.standard_normal((2, 3, 3), np.float32),
            palette_mask=np.arange(3) < np.array([[1], [3]]),
            task=np.array([1, 3]),
            frames=rng.standard_normal((2, 1, 4, 4, 3), np.float32),
        )
    cond = jax.tree.map(jnp.asarray, cond)
    forms = jax.eval_shape(network.init, jax.random.key(0), X, T, cond)["params"]
    return network, jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape, np.float32)), forms), cond


@pytest.mark.parametrize("name", ["editing", *(pytest.param(n, marks=pytest.mark.long) for n in ("wan", "bfloat16"))])
def test_keys_made_before_change_no_bit(name):
    network, params, cond = make(name)
    once = jax.jit(lambda p, c: with_text_keys(network, p, c))(params, cond)
    assert once.text is once.text_mask is once.palette is once.task is None
    apply = jax.jit(lambda p, c: network.apply({"params": p}, X, T, c))
    np.testing.assert_array_equal(apply(params, once), apply(params, cond))


def test_an_evaluation_is_spared_the_keys_the_values_and_the_embedding_of_the_text():
    network, params, cond = make("plain")
    network = network.clone(scan_unroll=network.depth)  # a loop would be counted once
    once = with_text_keys(network, params, cond)
    flops = [
        jax.jit(lambda p, c: network.apply({"params": p}, X, T, c)).lower(params, c).compile().cost_analysis()["flops"]
        for c in (cond, once)
    ]
    rows, d, s = 2 * 6, network.width, network.text_dim
    products = rows * (network.depth * 4 * d * d + 2 * (s * d + d * d))
    assert products <= flops[0] - flops[1] < 1.1 * products  # and the norms of the keys


def test_without_text_or_cross_attention_nothing_changes():
    network, params, cond = make("plain")
    joint = network.clone(text_attention="joint")
    assert with_text_keys(joint, params, cond) is cond
    assert with_text_keys(network, params, Conditioning()) == Conditioning()
    assert with_text_keys(lambda: None, params, cond) is cond
    with pytest.raises(ValueError, match="text_keys is present, but text_attention='joint'"):
        jax.eval_shape(lambda c: joint.apply({"params": params}, X, T, c), with_text_keys(network, params, cond))
