import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.models.text import t5

TINY = t5.T5Encoder(
    vocab_size=50, width=16, depth=2, num_heads=2, head_dim=6, mlp_width=24, num_buckets=8, max_distance=16
)


def init(module, *inputs):
    return jax.jit(module.init)(jax.random.key(0), *inputs)


def apply(module, *inputs):
    return jax.jit(module.apply)(*inputs)


def count(module):
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_xxl_encoders_have_the_published_parameter_counts():
    assert count(t5.t5_v1_1_xxl()) == 4_762_310_656
    assert count(t5.umt5_xxl()) == 5_680_910_336


def test_near_distances_have_their_own_bucket_and_far_ones_share():
    buckets = t5.relative_buckets(200, num_buckets=32, max_distance=128)
    row = buckets[0]  # query 0: distances 0 .. 199
    assert row[:8].tolist() == [0, *range(17, 24)]  # looking ahead uses the upper half
    assert buckets[:8, 0].tolist() == list(range(8))  # looking back the lower
    assert [row[16], row[32], row[64]] == [26, 28, 30]  # exact powers of two begin a bucket: 8 + 2 log2(n / 8)
    assert (row[128:] == 31).all()
    assert (np.diff(row[1:]) >= 0).all()


@pytest.mark.parametrize("per_block", [False, True])
def test_padding_does_not_reach_the_real_tokens(per_block):
    module = dataclasses.replace(TINY, has_bias_per_block=per_block)
    ids = jnp.array([[3, 7, 9, 2, 5]])
    params = init(module, ids)
    alone = apply(module, params, ids)
    padded_ids = jnp.concatenate([ids, jnp.array([[11, 12, 13]])], axis=1)
    padded = apply(module, params, padded_ids, jnp.arange(8)[None] < 5)
    np.testing.assert_allclose(padded[:, :5], alone, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_a_mask_of_ones_and_zeros_is_a_mask_of_booleans(dtype):
    ids, mask = jnp.array([[3, 7, 9], [2, 5, 1]]), np.array([[1, 1, 0], [1, 0, 0]], bool)
    params = init(TINY, ids)
    expected = TINY.apply(params, ids, mask)
    np.testing.assert_array_equal(TINY.apply(params, ids, mask.astype(dtype)), expected)
    np.testing.assert_array_equal(t5.pad_for_wan(expected, mask.astype(dtype), 4), t5.pad_for_wan(expected, mask, 4))


def test_a_mask_of_floats_is_refused():
    ids = jnp.array([[3, 7, 9]])
    params = init(TINY, ids)
    with pytest.raises(TypeError, match="mask"):  # by the check of types in tests, by `as_mask` elsewhere
        TINY.apply(params, ids, jnp.array([[0, 0, -jnp.inf]]))


def test_only_relative_position_matters():
    """Without a first token to tell, the same pair further along a padded text has the same states."""
    ids = jnp.array([[0, 0, 0, 4, 8], [4, 8, 0, 0, 0]])
    mask = jnp.array([[0, 0, 0, 1, 1], [1, 1, 0, 0, 0]], bool)
    params = init(TINY, ids, mask)
    states = apply(TINY, params, ids, mask)
    np.testing.assert_allclose(states[0, 3:], states[1, :2], atol=1e-5)
    assert float(jnp.abs(states[0, 3:] - states[1, :2][::-1]).max()) > 1e-2


def test_bias_tables_are_shared_or_one_per_block():
    ids = jnp.zeros((1, 4), jnp.int32)
    shapes = {}
    for per_block in (False, True):
        module = dataclasses.replace(TINY, has_bias_per_block=per_block)
        shapes[per_block] = jax.tree.map(jnp.shape, jax.eval_shape(module.init, jax.random.key(0), ids)["params"])
    assert shapes[False]["relative_bias"]["embedding"] == (8, 2)
    assert "relative_bias" not in shapes[False]["blocks"]
    assert shapes[True]["blocks"]["relative_bias"]["embedding"] == (2, 8, 2)
    assert "relative_bias" not in shapes[True]


def test_bfloat16_states_stay_near_float32_and_are_returned_in_float32():
    ids = jnp.arange(24).reshape(2, 12)
    params = init(TINY, ids)
    exact = apply(TINY, params, ids)
    low = apply(TINY.clone(dtype=jnp.bfloat16), params, ids)
    assert low.dtype == jnp.float32
    assert float(jnp.abs(low - exact).max() / jnp.abs(exact).max()) < 0.03


def test_wan_context_is_zero_behind_the_real_tokens():
    states = jnp.ones((2, 3, 4))
    context = t5.pad_for_wan(states, jnp.array([[1, 1, 1], [1, 0, 0]], bool), length=5)
    assert context.shape == (2, 5, 4)
    np.testing.assert_array_equal(context[..., 0], [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    with pytest.raises(ValueError, match="text has 3 tokens and the context 2"):
        t5.pad_for_wan(states, jnp.ones((2, 3), bool), length=2)


def test_flops_are_those_of_the_compiled_program():
    module = dataclasses.replace(TINY, depth=1, width=64, head_dim=32, mlp_width=96)
    ids = jnp.zeros((1, 32), jnp.int32)
    params = init(module, ids)
    measured = jax.jit(module.apply).lower(params, ids).compile().cost_analysis()["flops"]
    assert module.flops(32) <= measured <= 1.15 * module.flops(32)
