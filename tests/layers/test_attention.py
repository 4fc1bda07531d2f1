import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import attention, rope


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.fixture
def qkv():
    return tuple(normal(2, n, 3, 8, seed=seed) for seed, n in enumerate((attention.QUERY_BLOCK + 9, 7, 7)))


def oracle(q, k, v, mask=None):
    """Softmax attention in float64 numpy, one head at a time."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for b in range(q.shape[0]):
        for h in range(q.shape[2]):
            logits = q[b, :, h] @ k[b, :, h].T / np.sqrt(q.shape[-1])
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights = weights if mask is None else weights * mask[b][None]
            out[b, :, h] = weights / weights.sum(-1, keepdims=True) @ v[b, :, h]
    return out


@pytest.mark.parametrize("implementation", ["xla", "tiled", None])
@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_equals_the_softmax_formula(qkv, implementation, is_masked):
    mask = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1, 1]], bool) if is_masked else None
    attend = jax.jit(functools.partial(attention.attend, implementation=implementation))
    out = attend(*qkv, mask=None if mask is None else jnp.asarray(mask))
    np.testing.assert_allclose(out, oracle(*qkv, mask), atol=1e-5)


@pytest.mark.parametrize("implementation", ["xla", "tiled", "flash_jvp", None])
def test_a_mask_of_ones_and_zeros_is_one_of_booleans(qkv, implementation):
    mask = np.array([[1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1, 1]])
    attend = functools.partial(attention.attend, implementation=implementation)
    expected = attend(*qkv, mask=jnp.asarray(mask, bool))
    assert np.abs(expected - attend(*qkv)).max() > 0.1
    for dtype in (jnp.int32, jnp.uint8):
        np.testing.assert_array_equal(attend(*qkv, mask=jnp.asarray(mask, dtype)), expected)


def softmax_attention(q, k, v, mask):
    logits = jnp.einsum("bnkq,blkq->bknl", q, k) / q.shape[-1] ** 0.5
    where = None if mask is None else jnp.broadcast_to(mask[:, None, None], logits.shape)
    return jnp.einsum("bknl,blkq->bnkq", jax.nn.softmax(logits, where=where), v)


def energy(attend, qkv, mask):
    return jnp.sum(jnp.sin(attend(*qkv, mask=mask)))


def slope(attend, qkv, mask):
    return jax.jvp(lambda qkv: energy(attend, qkv, mask), (qkv,), (jax.tree.map(jnp.cos, qkv),))[1]


@pytest.mark.parametrize("implementation", ["xla", "tiled"])
@pytest.mark.parametrize("derivative", [jax.grad(energy, 1), slope, jax.grad(slope, 1)], ids=["vjp", "jvp", "vjp_jvp"])
@pytest.mark.parametrize("is_masked", [False, True])
def test_attention_has_every_derivative_of_the_softmax_formula(qkv, implementation, derivative, is_masked):
    mask = jnp.asarray([[1, 1, 1, 0, 0, 0, 0], [1, 0, 1, 1, 0, 1, 1]], bool) if is_masked else None
    attend = functools.partial(attention.attend, implementation=implementation)
    exact, ours = (jax.jit(functools.partial(derivative, f))(qkv, mask) for f in (softmax_attention, attend))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_softmax_is_taken_in_float32_for_bfloat16_inputs(qkv):
    q, k, v = (a.astype(jnp.bfloat16) for a in qkv)
    out = jax.jit(attention.attend)(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), oracle(q, k, v), atol=0.02)


def test_default_implementation_tiles_only_long_sequences():
    def jaxpr(n):
        q = jax.ShapeDtypeStruct((1, n, 1, 2), jnp.float32)
        return str(jax.make_jaxpr(attention.attend)(q, q, q))

    assert "scan" not in jaxpr(1024)
    assert "scan" in jaxpr(1152)


def test_an_unknown_implementation_is_named_in_the_error(qkv):
    with pytest.raises(ValueError, match=r"flashy.*xla, tiled, cudnn"):
        attention.attend.__wrapped__(*qkv, implementation="flashy")


@pytest.mark.parametrize(("n", "l", "has_mask"), [(9, 7, True), (9, 8, False), (8, 7, False), (8, 8, True)])
def test_cudnn_is_given_even_numbers_of_queries_and_keys(n, l, has_mask, monkeypatch):
    plain, seen = jax.nn.dot_product_attention, []

    def kernel(q, k, v, *, mask, implementation):
        assert implementation == "cudnn"
        seen.append((q.shape[1], k.shape[1], mask is not None))
        return plain(q, k, v, mask=mask)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    q, k, v = (normal(2, size, 3, 8, seed=i) for i, size in enumerate((n, l, l)))
    mask = np.arange(l)[None] < np.array([[3], [l]]) if has_mask else None
    out = attention.attend(q, k, v, mask=None if mask is None else jnp.asarray(mask), implementation="cudnn")
    np.testing.assert_allclose(out, oracle(q, k, v, mask), atol=1e-5)
    assert seen == [(n + n % 2, l + l % 2, has_mask or l % 2 == 1)]


def make_layer(**fields):
    layer = attention.MultiHeadAttention(num_heads=2, **fields)
    x = normal(2, 6, 12)
    return layer, jax.jit(layer.init)(jax.random.key(2), x, x), x


@pytest.mark.parametrize(("qk_norm", "size"), [("per_head", 6), ("across_heads", 12)])
def test_query_and_key_norms_have_one_gain_per_normalised_channel(qk_norm, size):
    _, variables, _ = make_layer(qk_norm=qk_norm)
    assert variables["params"]["query_norm"]["scale"].shape == (size,)
    assert variables["params"]["key_norm"]["scale"].shape == (size,)


@pytest.mark.parametrize("qk_norm", ["per_head", "across_heads"])
def test_normalised_attention_ignores_the_size_of_queries_and_keys(qk_norm):
    layer, variables, x = make_layer(qk_norm=qk_norm)
    scaled = jax.tree.map(lambda a: a, variables)
    for name in ("query", "key"):
        scaled["params"][name]["kernel"] = 100 * scaled["params"][name]["kernel"]
    np.testing.assert_allclose(jax.jit(layer.apply)(scaled, x, x), jax.jit(layer.apply)(variables, x, x), atol=1e-4)


def test_without_rotation_attention_is_equivariant_to_the_order_of_queries_and_blind_to_that_of_keys():
    layer, variables, x = make_layer()
    order = jnp.array([3, 1, 5, 0, 2, 4])
    out = jax.jit(layer.apply)(variables, x, x)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x[:, order], x), out[:, order], atol=1e-5)
    np.testing.assert_allclose(jax.jit(layer.apply)(variables, x, x[:, order]), out, atol=1e-5)


def test_rotation_makes_attention_see_the_order_of_keys():
    layer, variables, x = make_layer()
    rotation = rope.grid_rotation(np.arange(6), 1, 1, 6)
    order = jnp.array([3, 1, 5, 0, 2, 4])
    out = jax.jit(layer.apply)(variables, x, x, rotation=rotation)
    assert not np.allclose(jax.jit(layer.apply)(variables, x, x[:, order], rotation=rotation), out, atol=1e-3)


def test_masked_keys_have_no_influence_and_no_gradient():
    layer, variables, x = make_layer()
    mask = jnp.array([[True] * 4 + [False] * 2] * 2)
    gradient = jax.jit(jax.grad(lambda y: jnp.sum(layer.apply(variables, x, y, mask=mask) ** 2)))(x)
    assert np.all(gradient[:, 4:] == 0)
    assert np.any(gradient[:, :4] != 0)
