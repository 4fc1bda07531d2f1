import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from nova_jax.layers import linear, stack


class Layer(nn.Module):
    """x + tanh(context W x)."""

    @nn.compact
    def __call__(self, x, context):
        h = checkpoint_name(linear.Dense(x.shape[-1], name="up")(x), "fc1")
        return x + jnp.tanh(context * h), None


def make(depth=3, **fields):
    model = stack.scan_blocks(Layer, depth, **fields)(name="blocks")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 8)), jnp.float32)
    return model, jax.jit(model.init)(jax.random.key(1), x, jnp.float32(0.5)), x


def test_a_stack_applies_its_layers_in_turn():
    model, variables, x = make()
    y, _ = jax.jit(model.apply)(variables, x, jnp.float32(0.5))
    for i in range(3):
        layer = {"params": jax.tree.map(lambda a, i=i: a[i], variables["params"])}
        x, _ = jax.jit(Layer().apply)(layer, x, 0.5)
    np.testing.assert_allclose(y, x, atol=1e-6)


def test_layers_start_out_different():
    _, variables, _ = make()
    kernel = variables["params"]["up"]["kernel"]
    assert kernel.shape == (3, 8, 8)
    assert not np.allclose(kernel[0], kernel[1])


@pytest.mark.parametrize("fields", [{"remat": "names"}, {"unroll": 2}, {"unroll": 3, "remat": "full"}])
def test_values_and_gradients_do_not_depend_on_remat_or_unrolling(fields):
    def loss_of(model):
        return lambda v: jnp.sum(model.apply(v, x, jnp.float32(0.5))[0] ** 2)

    reference, variables, x = make()
    model = stack.scan_blocks(Layer, 3, **fields)(name="blocks")
    expected, got = (jax.jit(jax.value_and_grad(loss_of(m)))(variables) for m in (reference, model))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), expected, got)


def test_parameters_do_not_depend_on_remat_or_unrolling():
    (_, scanned, _), (_, unrolled, _) = make(), make(unroll=3, remat="full")
    jax.tree.map(np.testing.assert_array_equal, scanned, unrolled)


def test_a_fully_unrolled_stack_compiles_to_no_loop():
    for unroll, has_loop in ((1, True), (3, False)):
        model, variables, x = make(unroll=unroll)
        text = jax.jit(model.apply).lower(variables, x, jnp.float32(0.5)).compile().as_text()
        assert (" while(" in text) == has_loop


def test_an_unknown_policy_is_named_in_the_error():
    with pytest.raises(ValueError, match=r"everything.*names_light"):
        stack.scan_blocks.__wrapped__(Layer, 2, remat="everything")


class HalfLayer(nn.Module):
    """x + gain W x in bfloat16."""

    @nn.compact
    def __call__(self, x, context):
        gain = self.param("gain", nn.initializers.ones, x.shape[-1:])
        return x + gain[None, None] * linear.Dense(x.shape[-1], dtype=jnp.bfloat16, name="up")(x), None


def test_weights_that_are_cast_once_change_no_bit_and_are_not_cast_in_the_loop():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 4, 8)), jnp.float32)
    layers = stack.scan_blocks(HalfLayer, 3)
    plain, once = layers(name="blocks"), stack.cast_once(layers, jnp.bfloat16)(name="blocks")
    variables = plain.init(jax.random.key(1), x, None)

    def loss(model):
        return lambda v: jnp.sum(model.apply(v, x, None)[0] ** 2)

    jax.tree.map(
        np.testing.assert_array_equal, *(jax.value_and_grad(loss(model))(variables) for model in (plain, once))
    )
    (loop,) = (e for e in jax.make_jaxpr(loss(once))(variables).eqns if e.primitive.name == "scan")
    kinds = {(v.aval.shape, str(v.aval.dtype)) for v in loop.invars}
    assert ((3, 8, 8), "bfloat16") in kinds
    assert ((3, 8), "float32") in kinds  # the gain
    assert ((3, 8, 8), "float32") not in kinds
