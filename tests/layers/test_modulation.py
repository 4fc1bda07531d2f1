import functools

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax.layers import modulation, norms

EPS = 1e-6
modulate = jax.jit(functools.partial(modulation.modulate, eps=EPS))
add_gated = jax.jit(modulation.add_gated)


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def test_modulation_per_frame_reaches_the_tokens_of_that_frame_only():
    x = normal(1, 6, 8)
    shift = jnp.zeros((1, 3, 8)).at[:, 1].set(5.0)
    h, plain = np.asarray(modulate(x, shift, 0 * shift)), np.asarray(norms.standardize(x, EPS))
    np.testing.assert_allclose(h[:, 2:4], plain[:, 2:4] + 5, atol=1e-5)
    np.testing.assert_allclose(h[:, [0, 1, 4, 5]], plain[:, [0, 1, 4, 5]], atol=1e-5)


def test_equal_rows_of_modulation_equal_one_row():
    x = normal(2, 6, 8)
    one = normal(2, 1, 8, seed=1)
    each = jnp.repeat(one, 3, axis=1)
    np.testing.assert_allclose(modulate(x, each, each), modulate(x, one, one), atol=1e-6)
    np.testing.assert_allclose(add_gated(x, 2 * x, each), add_gated(x, 2 * x, one), atol=1e-6)


def test_a_zero_gate_returns_its_input_to_the_bit():
    x = normal(2, 6, 8).astype(jnp.bfloat16)
    gated = add_gated(x, x, jnp.zeros((2, 1, 8)))
    assert gated.dtype == x.dtype
    np.testing.assert_array_equal(gated, x)


def test_modulation_is_computed_in_float32():
    x = normal(1, 4, 16).astype(jnp.bfloat16)
    scale = normal(1, 1, 16, seed=1)
    exact = modulate(x.astype(jnp.float32), scale, scale)
    np.testing.assert_array_equal(modulate(x, scale, scale), exact.astype(jnp.bfloat16))


def test_rows_looked_up_by_frame_are_those_of_equal_parts_to_the_bit():
    rows = normal(2, 3, 8)
    frames = jax.nn.one_hot(np.arange(12) // 4, 3)
    order = np.random.default_rng(1).permutation(12)
    expected = modulation.per_token(rows, 12)
    np.testing.assert_array_equal(jax.jit(modulation.per_token, static_argnums=1)(rows, 12, frames), expected)
    np.testing.assert_array_equal(modulation.per_token(rows, 12, frames[order]), expected[:, order])
