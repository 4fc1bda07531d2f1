import functools
import re
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nova_jax.layers import attention, attention_jvp
from nova_jax.parallel import mesh as meshes

N, L = 9, 2 * attention_jvp.KEY_BLOCK + 7  # the last of three blocks of keys is filled up
MASK = np.random.default_rng(9).random((2, L)) < 0.5
MASK[0, : attention_jvp.KEY_BLOCK] = False  # all of the first block
MASK = jnp.asarray(MASK)

flash_jvp = functools.partial(attention.attend, implementation="flash_jvp")
xla = functools.partial(attention.attend, implementation="xla")


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def draw(n=N, l=L, seed=0):
    return tuple(normal(2, size, 3, 8, seed=seed + i) for i, size in enumerate((n, l, l)))


QKV, DIRECTION = draw(), draw(seed=3)


def complex_step(qkv, direction, mask):
    """The derivative of softmax attention in float64: Im f(x + ih dx) / h has no cancellation."""
    q, k, v = (
        np.asarray(a, np.float64) + 1e-30j * np.asarray(da, np.float64) for a, da in zip(qkv, direction, strict=True)
    )
    logits = np.einsum("bnkq,blkq->bknl", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(logits - logits.real.max(-1, keepdims=True))
    weights = weights if mask is None else weights * np.asarray(mask)[:, None, None]
    return np.einsum("bknl,blkq->bnkq", weights / weights.sum(-1, keepdims=True), v).imag / 1e-30


def derivative(attend, qkv, direction, mask=None):
    return jax.jvp(lambda *qkv: attend(*qkv, mask=mask), qkv, direction)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_the_tangent_is_the_derivative_of_softmax_attention(mask, size):
    qkv = (size * QKV[0], *QKV[1:])
    out, tangent = jax.jit(functools.partial(derivative, flash_jvp))(qkv, DIRECTION, mask)
    np.testing.assert_allclose(out, jax.jit(xla)(*qkv, mask=mask), atol=1e-5)
    exact = complex_step(qkv, DIRECTION, mask)
    np.testing.assert_allclose(tangent, exact, atol=1e-5 * np.abs(exact).max())


def test_without_a_derivative_it_is_the_primal():
    np.testing.assert_array_equal(
        jax.jit(flash_jvp)(*QKV, mask=MASK),
        jax.jit(attention.attend, static_argnames="implementation")(*QKV, mask=MASK, implementation="tiled"),
    )


def test_sums_are_in_float32_for_bfloat16_inputs():
    qkv, direction = (tuple(a.astype(jnp.bfloat16) for a in arrays) for arrays in (QKV, DIRECTION))
    _, tangent = jax.jit(functools.partial(derivative, flash_jvp))(qkv, direction)
    assert tangent.dtype == jnp.bfloat16
    exact = complex_step(*(tuple(a.astype(jnp.float32) for a in arrays) for arrays in (qkv, direction)), None)
    assert np.linalg.norm(tangent.astype(jnp.float32) - exact) / np.linalg.norm(exact) < 2**-8


def target_loss(attend, qkv, direction, mask=None):
    """A loss of the form of MeanFlow's: the tangent is a part of the target."""
    out, tangent = derivative(attend, qkv, direction, mask)
    return jnp.sum((out - jax.lax.stop_gradient(jnp.sin(out) - tangent)) ** 2)


@pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "masked"])
def test_the_gradient_of_a_loss_with_the_tangent_as_target_is_exact(mask):
    exact, ours = (
        jax.jit(jax.grad(functools.partial(target_loss, attend)))(QKV, DIRECTION, mask) for attend in (xla, flash_jvp)
    )
    for a, b in zip(ours, exact, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


MESSAGE = r'"flash_jvp".*inside jax.jvp only.*"xla", "tiled" or "cudnn"'


def test_a_gradient_outside_jvp_is_refused():
    with pytest.raises(TypeError, match=MESSAGE):
        jax.grad(lambda q: jnp.sum(flash_jvp(q, *QKV[1:])))(QKV[0])


def test_a_gradient_of_the_tangent_is_refused():
    def loss(qkv):
        return jnp.sum(derivative(flash_jvp, qkv, DIRECTION)[1] ** 2)

    with pytest.raises(TypeError, match=MESSAGE):
        jax.grad(loss)(QKV)


def shapes_in(jaxpr):
    """Shapes of all values that a program computes, loops and other inner programs included."""
    for equation in jaxpr.eqns:
        yield from (v.aval.shape for v in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values())):
            yield from shapes_in(inner) if hasattr(inner, "eqns") else ()


def test_neither_the_value_nor_the_tangent_nor_the_gradient_holds_all_scores():
    def holds_scores(attend, n=320, l=384):
        program = jax.make_jaxpr(jax.grad(functools.partial(target_loss, attend)))
        found = list(shapes_in(program(draw(n, l), draw(n, l, seed=3)).jaxpr))
        assert len(found) > 50
        return max(np.prod(shape) for shape in found) >= 2 * 3 * n * l

    assert holds_scores(xla)
    assert not holds_scores(flash_jvp)


def test_it_runs_inside_shard_map():
    mesh = meshes.MeshConfig(fsdp=2, context=2, tensor=2).make()
    queries, keys = P("fsdp", "context", "tensor"), P("fsdp", None, "tensor")
    arrays = draw(n=8), draw(n=8, seed=3)
    arrays = jax.tree.map(lambda a: jnp.concatenate([a, a], axis=2)[:, :, :4], arrays)

    def mapped(q, k, v, *, mask):
        inside = jax.shard_map(
            lambda q, k, v, mask: flash_jvp(q, k, v, mask=mask),
            mesh=mesh,
            in_specs=(queries, keys, keys, P("fsdp")),
            out_specs=queries,
        )
        return inside(q, k, v, mask)

    for function in (derivative, lambda attend, *args: jax.grad(functools.partial(target_loss, attend))(*args)):
        ours, exact = (jax.jit(functools.partial(function, attend))(*arrays, MASK) for attend in (mapped, xla))
        for a, b in zip(ours, exact, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())


@pytest.fixture
def traces_cudnn(monkeypatch):
    """Lets cuDNN attention be traced and lowered, which needs no GPU; only these checks do."""
    kernels = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{kernels}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{kernels}.check_compute_capability", lambda capability: True)
    h200 = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=None, platform="gpu")
    monkeypatch.setattr("nova_jax.parallel.mesh.current_device", lambda: h200)


def lower_for(platform, function, *args):
    return jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize("implementation", [None, *typing.get_args(attention.Implementation)])
def test_forward_mode_names_the_implementations_that_jvp_can_pass(traces_cudnn, implementation):
    half = jax.tree.map(lambda a: a[:, :8].astype(jnp.bfloat16), (QKV, DIRECTION))
    attend = functools.partial(attention.attend, implementation=implementation)
    platform = "tpu" if implementation == "splash" else "cuda"
    if implementation in attention.FORWARD_MODE:
        lower_for(platform, functools.partial(derivative, attend), *half)
    else:
        with pytest.raises(TypeError, match="forward-mode"):
            lower_for(platform, functools.partial(derivative, attend), *half)


@pytest.mark.parametrize(("dtype", "kernels"), [(jnp.bfloat16, 2), (jnp.float16, 2), (jnp.float32, 0)])
def test_on_a_gpu_the_primal_and_its_gradient_are_flash_kernels_in_half_precision(traces_cudnn, dtype, kernels):
    half = jax.tree.map(lambda a: a[:, :8].astype(dtype), (QKV, DIRECTION))
    program = lower_for("cuda", jax.grad(functools.partial(target_loss, flash_jvp)), *half)
    assert program.count("custom_call @__cudnn$fmha") == kernels


@pytest.mark.parametrize("implementation", ["xla", "tiled", "flash_jvp"])
def test_on_a_mesh_each_device_attends_from_its_own_queries_and_heads(implementation):
    mesh = meshes.MeshConfig(fsdp=2, context=2, tensor=2).make()
    qkv = tuple(
        jax.ShapeDtypeStruct((2, size, 4, 8), jnp.float32, sharding=NamedSharding(mesh, P("fsdp", tokens, "tensor")))
        for size, tokens in ((2 * attention.QUERY_BLOCK, "context"), (L, None), (L, None))
    )
    attend = functools.partial(attention.attend, implementation=implementation)
    with jax.set_mesh(mesh):
        compiled = jax.jit(functools.partial(derivative, attend)).lower(qkv, qkv, MASK).compile()
    assert all(sharding.spec == P("fsdp", "context", "tensor") for sharding in compiled.output_shardings)
    assert not re.findall("all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())
