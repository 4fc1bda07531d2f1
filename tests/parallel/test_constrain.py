"""Logical axes on activations."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from nova_jax.parallel import constrain as constraints
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel.constrain import constrain


@pytest.fixture(scope="module")
def mesh():
    return meshes.MeshConfig(fsdp=2, context=2, tensor=2).make()


def spec_of(mesh, shape, *axes):
    with jax.set_mesh(mesh):
        return jax.jit(lambda x: constrain(x, *axes))(jnp.zeros(shape)).sharding.spec


def test_without_a_mesh_x_itself_comes_back():
    x = jnp.zeros((2, 3))
    assert constrain(x, "batch", "width") is x
    assert jax.jit(lambda x: constrain(x, "batch", "width")).trace(x).jaxpr.eqns == []


def test_activations_are_cut_by_batch_tokens_and_heads(mesh):
    assert spec_of(mesh, (4, 8, 4, 3), "batch", "tokens", "heads", "head_dim") == P("fsdp", "context", "tensor")
    assert spec_of(mesh, (4, 8, 6), "batch", "tokens", "width") == P("fsdp", "context")
    assert spec_of(mesh, (4, 8, 6), "batch", None, "mlp") == P("fsdp", None, "tensor")


def test_an_axis_that_does_not_divide_is_left_out(mesh):
    assert spec_of(mesh, (1, 8, 6), "batch", "tokens", "width") == P(None, "context")


def test_what_does_not_divide_is_noted_once_with_what_would(mesh):
    with constraints.noting() as notes:
        spec_of(mesh, (1, 8, 9, 4), "batch", "tokens", "heads", "head_dim")
        spec_of(mesh, (2, 8, 9, 4), "batch", "tokens", "heads", "head_dim")
        spec_of(mesh, (2, 8, 4), "batch", "tokens", "mlp")
    assert notes == [
        "the size 9 of heads does not divide over tensor=2, so it is whole on every device: "
        "a size of 8 or a size of 10 would fit"
    ]


def test_gradients_pass_through(mesh):
    with jax.set_mesh(mesh):
        grad = jax.jit(jax.grad(lambda x: jnp.sum(constrain(x, "batch", "width") ** 2)))(jnp.ones((4, 2)))
    assert grad.tolist() == [[2.0, 2.0]] * 4


def test_inside_shard_map_mapped_axes_are_left_alone(mesh):
    mapped = jax.shard_map(
        lambda x: constrain(2 * x, "batch", "width"), mesh=mesh, in_specs=P("fsdp"), out_specs=P("fsdp")
    )
    with jax.set_mesh(mesh):
        assert jax.jit(mapped)(jnp.ones((4, 2))).tolist() == [[2.0, 2.0]] * 4


def test_unknown_names_and_wrong_numbers_of_names_are_refused():
    with pytest.raises(ValueError, match=r"unknown logical axes \['token'\]: use batch, tokens"):
        constrain(jnp.zeros((2, 3)), "batch", "token")
    with pytest.raises(ValueError, match=r"1 logical axes \('batch',\) for an array of shape \(2, 3\)"):
        constrain(jnp.zeros((2, 3)), "batch")
