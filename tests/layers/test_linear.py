import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nova_jax.layers import linear
from nova_jax.parallel import collectives, rules
from nova_jax.parallel import mesh as meshes


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


@pytest.fixture
def xw():
    return normal(3, 5, 8), normal(8, 6, seed=1)


def test_matmul_and_its_gradients_equal_those_of_a_plain_product(xw):
    x, w = xw

    def loss(matmul, x, w):
        return jnp.sum(jnp.sin(matmul(x, w)))

    np.testing.assert_allclose(linear.matmul(x, w), jnp.einsum("bni,io->bno", x, w), rtol=1e-5)
    gradient = jax.jit(jax.grad(loss, argnums=(1, 2)), static_argnums=0)
    ours, plain = gradient(linear.matmul, x, w), gradient(lambda x, w: jnp.einsum("bni,io->bno", x, w), x, w)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_matmul_is_bilinear_under_forward_mode(xw):
    x, w = xw
    _, tangent = jax.jvp(linear.matmul, (x, w), (2 * x, 3 * w))
    np.testing.assert_allclose(tangent, 5 * linear.matmul(x, w), rtol=1e-5)


def test_gradient_of_a_directional_derivative_matches_finite_differences(xw):
    x, w = xw

    def slope(w):
        return jnp.sum(jax.jvp(lambda x: jnp.tanh(linear.matmul(x, w)), (x,), (jnp.ones_like(x),))[1] ** 2)

    slope = jax.jit(slope)
    direction = normal(*w.shape, seed=2) / 10
    h = 1e-2
    numeric = (slope(w + h * direction) - slope(w - h * direction)) / (2 * h)
    np.testing.assert_allclose(jnp.vdot(jax.grad(slope)(w), direction), numeric, rtol=5e-3)


def test_matmul_maps_over_stacked_weights(xw):
    x, w = xw
    stacked = jnp.stack([w, 2 * w])
    np.testing.assert_allclose(jax.vmap(linear.matmul, (None, 0))(x, stacked)[1], 2 * linear.matmul(x, w), rtol=1e-5)


def test_sharded_tokens_are_not_gathered_by_a_linear_layer(xw):
    x, w = xw
    mesh = jax.make_mesh((2,), ("context",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "context"))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.tile(x, (1, 2, 1)), sharding)
        compiled = jax.jit(linear.matmul, out_shardings=sharding).lower(x, w).compile()
    assert "all-gather" not in compiled.as_text()


def test_dense_computes_in_its_dtype_from_float32_masters():
    layer = linear.Dense(4, dtype=jnp.bfloat16)
    x = jnp.ones((2, 3))
    y, variables = layer.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {k: (v.shape, v.dtype) for k, v in variables["params"].items()} == {
        "kernel": ((3, 4), jnp.float32),
        "bias": ((4,), jnp.float32),
    }


def test_dense_without_bias_has_a_kernel_only():
    variables = linear.Dense(4, use_bias=False).init(jax.random.key(0), jnp.ones((2, 3)))
    assert list(variables["params"]) == ["kernel"]


def test_layers_of_one_input_are_one_product_under_a_tensor_axis_and_apart_without(xw):
    layers = [linear.Dense(16, name=name) for name in ("query", "key")]
    weights = [layer.init(jax.random.key(i), xw[0])["params"] for i, layer in enumerate(layers)]

    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            return linear.project(x, [linear.Dense(16, name=name) for name in ("query", "key")])

    def loss(params, x):
        query, key = Both().apply({"params": params}, x)
        return jnp.sum(jnp.sin(query) * jnp.cos(key)), (query, key)

    params = {"query": {**weights[0], "bias": normal(16, seed=2)}, "key": weights[1]}
    gradient = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    (_, apart), gradients = gradient(params, xw[0])
    np.testing.assert_array_equal(apart[1], layers[1].apply({"params": params["key"]}, xw[0]))
    mesh = meshes.MeshConfig(data=1, tensor=8).make()
    x, named = jax.ShapeDtypeStruct(xw[0].shape, jnp.float32, sharding=NamedSharding(mesh, P())), {"attention": params}
    placed = rules.shardings(named, mesh)["attention"]
    shapes = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, placed)
    with jax.set_mesh(mesh):
        program = jax.jit(gradient).lower(shapes, x).compile()
    (_, together), of_mesh = program(jax.device_put(params, placed), jax.device_put(xw[0], NamedSharding(mesh, P())))
    for a, b in zip(jax.tree.leaves((apart, gradients)), jax.tree.leaves((together, of_mesh)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    summed = [c.size for c in collectives.read(program.as_text(), mesh.shape) if c.kind == "all-reduce"]
    assert sum(summed) <= xw[0].nbytes + 4, "the gradient of the input once, and the loss"


def exact_gelu(x):
    """The tanh form and its derivative, in float64."""
    x, c = np.asarray(x, np.float64), np.sqrt(2 / np.pi)
    half = 1 / (1 + np.exp(-2 * c * (x + 0.044715 * x**3)))
    return x * half, half + 2 * x * half * (1 - half) * c * (1 + 3 * 0.044715 * x**2)


@pytest.mark.parametrize("order", ["value", "vjp", "jvp", "vjp_of_jvp"])
def test_gelu_and_its_derivatives_are_those_of_the_tanh_form(order):
    x, h = jnp.linspace(-6, 6, 1001), 1e-5

    def slope(x):
        return jax.jvp(linear.gelu, (x,), (jnp.cos(x),))[1]

    def gradient(f):
        return jax.grad(lambda x: jnp.sum(f(x)))

    def exact_slope(x):
        return exact_gelu(x)[1] * np.cos(x)

    at = np.asarray(x, np.float64)
    ours, exact = {
        "value": (linear.gelu, exact_gelu(at)[0]),
        "vjp": (gradient(linear.gelu), exact_gelu(at)[1]),
        "jvp": (slope, exact_slope(at)),
        "vjp_of_jvp": (gradient(slope), (exact_slope(at + h) - exact_slope(at - h)) / (2 * h)),
    }[order]
    np.testing.assert_allclose(ours(x), exact, atol=1e-5)


def test_the_derivative_of_gelu_in_half_precision_is_exact_but_for_its_rounding():
    x = jnp.linspace(-6, 6, 1001, dtype=jnp.bfloat16)
    gradient = jax.grad(lambda x: jnp.sum(linear.gelu(x).astype(jnp.float32)))(x)
    np.testing.assert_allclose(np.asarray(gradient, np.float64), exact_gelu(x)[1], rtol=2**-8, atol=1e-6)
