"""Muon's iteration against singular values, and whole matrices on a mesh against one device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.parallel import collectives, rules
from nova_jax.parallel import mesh as meshes
from nova_jax.training import muon


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8), (3, 8, 16)])
def test_newton_schulz_brings_every_singular_value_near_one_and_keeps_the_vectors(shape):
    matrix = jax.random.normal(jax.random.key(0), shape)
    u, _, vt = np.linalg.svd(np.asarray(matrix), full_matrices=False)
    values = np.einsum("...ij,...jk,...lk->...il", np.swapaxes(u, -1, -2), muon.orthogonalize(matrix, 10), vt)
    diagonal = np.diagonal(values, axis1=-2, axis2=-1)
    assert 0.6 < diagonal.min() <= diagonal.max() < 1.3
    off = values - np.eye(values.shape[-1]) * diagonal[..., None]
    assert np.abs(off).max() < 1e-4


def test_stacked_blocks_are_orthogonalised_one_by_one():
    matrices = jax.random.normal(jax.random.key(0), (3, 8, 16))
    together = muon.orthogonalize(matrices)
    apart = jnp.stack([muon.orthogonalize(matrix) for matrix in matrices])
    np.testing.assert_allclose(together, apart, atol=1e-5)


def test_muon_momentum_is_nesterov():
    transform = muon.scale_by_muon(momentum=0.5)
    first, second = jax.random.normal(jax.random.key(0), (2, 4, 4))
    state = transform.init(first)
    _, state = transform.update(first, state)
    updates, _ = transform.update(second, state)
    mu = 0.5 * first + second
    expected = 0.2 * 4**0.5 * muon.orthogonalize(0.5 * mu + second)
    np.testing.assert_allclose(updates, expected, atol=1e-5)


def matrices(depth=3):
    """Stacks of three layers and single ones; square ones cut both ways, wide and tall ones, one that nothing cuts."""
    rng = np.random.default_rng(0)
    shapes = {
        "blocks/attention/query/kernel": (depth, 16, 16),
        "blocks/attention/out/kernel": (depth, 16, 16),
        "blocks/mlp/up/kernel": (depth, 16, 64),
        "blocks/mlp/down/kernel": (depth, 64, 16),
        "blocks_0/attention/out/kernel": (16, 16),
        "text_embed/in/kernel": (7, 9),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def compiled_on(mesh, tree, function):
    placed = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, rules.shardings(tree, mesh)
    )
    with jax.set_mesh(mesh):
        return jax.jit(function, out_shardings=rules.shardings(tree, mesh)).lower(placed).compile()


@pytest.mark.parametrize(
    "sizes",
    [
        {"data": 2, "fsdp": 2, "tensor": 2},
        pytest.param({"data": 8}, marks=pytest.mark.long),
        pytest.param({"data": 1, "fsdp": 2, "context": 4}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_matrices_shared_out_over_a_mesh_come_back_as_on_one_device(sizes):
    tree, mesh = matrices(), meshes.MeshConfig(**sizes).make()
    alone = jax.jit(muon.orthogonalize_tree)(tree)
    placed = rules.shardings(tree, mesh)
    shared = compiled_on(mesh, tree, muon.orthogonalize_tree)(jax.device_put(tree, placed))
    for name, matrix in shared.items():
        np.testing.assert_allclose(matrix, alone[name], atol=2e-5, err_msg=name)
        assert matrix.sharding == placed[name]


@pytest.mark.parametrize(
    ("sizes", "cuts", "copies"),
    [
        pytest.param({"data": 8}, (), 8, marks=pytest.mark.long),
        pytest.param({"data": 1, "fsdp": 8}, (8,), 1, marks=pytest.mark.long),
        ({"data": 2, "fsdp": 2, "tensor": 2}, (2, 2), 2),
    ],
)
def test_whole_matrices_cost_what_the_formula_says_and_the_work_is_shared(sizes, cuts, copies):
    tree = {name: matrix for name, matrix in matrices(depth=8).items() if name.startswith("blocks/")}
    size = sum(matrix.nbytes for matrix in tree.values())
    mesh = meshes.MeshConfig(**sizes).make()
    program = compiled_on(mesh, tree, muon.orthogonalize_tree)
    found = collectives.read(program.as_text(), mesh.shape)
    assert collectives.sent(found) == pytest.approx(collectives.muon(size, cuts, copies))
    assert {c.kind for c in found} <= {"all-to-all", "all-gather"}, "nothing is summed, so nothing is in the iteration"
    alone = jax.jit(muon.orthogonalize_tree).lower(tree).compile()
    work = program.cost_analysis()["flops"] / alone.cost_analysis()["flops"]
    assert work < 1.2 / 8
