import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import attention, attention_splash, rope
from nova_jax.parallel import constrain


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
    with pytest.raises(ValueError, match=r"flashy.*xla, tiled, cudnn, splash"):
        attention.attend.__wrapped__(*qkv, implementation="flashy")


MASKS = {
    "none": None,
    "a number": np.array([3, 7]),
    "a mask": np.array([[1, 0, 1, 1, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1]], bool),
}


def rows_of(mask, l=7):
    return mask if mask is None or mask.ndim == 2 else np.arange(l) < mask[:, None]


@pytest.mark.parametrize("implementation", ["xla", "tiled", "flash_jvp"])
def test_a_number_of_keys_is_a_mask_of_the_first(qkv, implementation):
    attend = functools.partial(attention.attend, *qkv, implementation=implementation)
    lengths = MASKS["a number"]
    np.testing.assert_array_equal(attend(mask=jnp.asarray(lengths)), attend(mask=jnp.asarray(rows_of(lengths))))


@pytest.mark.parametrize("kind", MASKS)
def test_cudnn_reads_a_number_of_keys_and_never_a_mask(qkv, kind, monkeypatch):
    """The wrapper around the kernel, with JAX's plain attention in its place; values and gradients."""
    plain, seen = jax.nn.dot_product_attention, []

    def kernel(q, k, v, *, key_value_seq_lengths, implementation):
        assert implementation == "cudnn"
        seen.append((k.shape[1], str(key_value_seq_lengths.dtype)))
        return plain(q, k, v, key_value_seq_lengths=key_value_seq_lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    mask = None if MASKS[kind] is None else jnp.asarray(MASKS[kind])
    rows = None if mask is None else jnp.asarray(rows_of(MASKS[kind]))
    ours = functools.partial(attention.attend, implementation="cudnn")
    np.testing.assert_allclose(ours(*qkv, mask=mask), oracle(*qkv, rows_of(MASKS[kind])), atol=1e-5)
    for a, b in zip(
        jax.grad(energy, 1)(ours, qkv, mask), jax.grad(energy, 1)(softmax_attention, qkv, rows), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
    assert set(seen) == {(8, "int32")}


@pytest.mark.parametrize("kind", MASKS)
def test_splash_attention_fills_blocks_up_and_ignores_what_fills_them(qkv, kind):
    mask = rows_of(MASKS[kind])
    ours = functools.partial(attention_splash.attend, is_interpreted=True)
    mask = None if mask is None else jnp.asarray(mask)
    np.testing.assert_allclose(ours(*qkv, mask), oracle(*qkv, mask), atol=1e-5)

    def slopes(attend):
        return jax.grad(lambda qkv: jnp.sum(jnp.sin(attend(*qkv, mask))))(qkv)

    for a, b in zip(slopes(ours), slopes(softmax_attention), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


def test_real_keys_come_first_in_their_order():
    mask = jnp.asarray([[0, 1, 0, 1], [1, 1, 1, 1]], bool)
    lengths, tokens = attention.real_first(mask, jnp.arange(8.0).reshape(2, 4, 1))
    assert lengths.tolist() == [2, 4]
    assert tokens[..., 0].tolist() == [[1, 3, 0, 2], [4, 5, 6, 7]]


def on(platform, kind):
    return jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=platform)


def test_attention_is_chosen_by_device_dtype_and_shape():
    h200, tpu = on("gpu", "NVIDIA H200"), on("tpu", "TPU v5p")
    choices = {
        (h200, "bfloat16", 256, 256, 128): ("cudnn", "bfloat16 on NVIDIA H200"),
        (h200, "float16", 64, 25, 256): ("cudnn", "float16 on NVIDIA H200"),
        (h200, "float32", 256, 256, 128): ("xla", "takes bfloat16 or float16, not float32"),
        (h200, "bfloat16", 256, 256, 12): ("xla", "multiples of 8 up to 256, not 12"),
        (h200, "bfloat16", 2048, 2048, 384): ("tiled", "multiples of 8 up to 256, not 384"),
        (on("gpu", "Tesla T4"), "bfloat16", 256, 256, 128): ("xla", "from Ampere on, not Tesla T4"),
        (on("gpu", "AMD Instinct MI300X"), "bfloat16", 256, 256, 128): ("xla", "not AMD Instinct MI300X"),
        (tpu, "bfloat16", 256, 256, 128): ("splash", "bfloat16 on TPU v5p"),
        (tpu, "bfloat16", 4096, 25, 128): ("xla", "128 queries and keys"),
        (tpu, "float32", 4096, 4096, 128): ("tiled", "takes bfloat16, not float32"),
        (tpu, "bfloat16", 256, 256, 96): ("xla", "multiples of 64, not 96"),
        (on("cpu", "cpu"), "bfloat16", 256, 256, 128): ("xla", "cpu has no flash attention"),
    }
    for arguments, (implementation, reason) in choices.items():
        choice = attention.choose(*arguments)
        assert choice.implementation == implementation, arguments
        assert choice.reason.endswith(reason), choice.reason


def test_the_choice_follows_the_mesh_and_is_noted_once(qkv):
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=on("gpu", "NVIDIA H200"))
    with constrain.noting() as found, jax.sharding.use_abstract_mesh(mesh):
        for _ in range(2):
            jax.eval_shape(attention.attend, *qkv)
    assert found == ["attention by xla: flash attention of cuDNN takes bfloat16 or float16, not float32"]
    with constrain.noting() as found:
        jax.eval_shape(attention.attend, *qkv)
    assert found == ["attention by xla: cpu has no flash attention"]


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
