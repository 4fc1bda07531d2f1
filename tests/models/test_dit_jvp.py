"""MeanFlow through the whole network: values, tangents and parameter gradients, on one device and on a mesh."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import stack
from nova_jax.models import dit
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules
from nova_jax.types import Conditioning

SIZES = {"width": 32, "depth": 3, "num_heads": 2, "in_channels": 3, "text_dim": 5, "freq_dim": 16}
SIZES |= {"has_second_time": True, "time_scale": 10.0}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


X, V, T = normal(4, 2, 4, 8, 3), normal(4, 2, 4, 8, 3, seed=1), jnp.asarray([0.3, 0.8, 0.5, 1.0])
TEXT = Conditioning(text=normal(4, 6, 5, seed=2), text_mask=jnp.arange(6)[None] < jnp.asarray([[2], [6], [1], [4]]))


@functools.cache
def random_params():
    """Parameters away from initialisation, where gates are zero."""
    shapes = jax.eval_shape(dit.DiT(**SIZES).init, jax.random.key(0), X, T, TEXT)["params"]
    rng = np.random.default_rng(3)

    def draw(path, shape):
        noise = rng.standard_normal(shape.shape)
        name = path[-1].key
        values = noise / shape.shape[-2] ** 0.5 if name == "kernel" else (name == "scale") + 0.2 * noise
        return jnp.asarray(values, shape.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def value_and_tangent(model, params, x=X):
    def u(x, t, r):
        return model.apply({"params": params}, x, t, TEXT._replace(r=r))

    return jax.jvp(u, (x, T, T / 2), (V, jnp.ones_like(T), jnp.zeros_like(T)))


def meanflow(model, params, x=X):
    """|u - sg(v - (t - r) du)|^2, Geng et al. 2025, arXiv:2505.13447; with u and du."""
    u, du = value_and_tangent(model, params, x)
    target = V - (T / 2)[:, None, None, None, None] * du
    return jnp.mean((u - jax.lax.stop_gradient(target)) ** 2), (u, du)


gradient = jax.grad(meanflow, argnums=1, has_aux=True)


def make(**fields):
    return dit.DiT(**{**SIZES, "attention_implementation": "flash_jvp", **fields})


def run(function, **fields):
    return jax.jit(functools.partial(function, make(**fields)))(random_params())


def assert_close(ours, exact, rtol=1e-5):
    """Closeness of every array, relative to its norm."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(exact), strict=True):
        error = np.linalg.norm(np.asarray(a) - np.asarray(b))
        assert error <= rtol * np.linalg.norm(b), f"{jax.tree_util.keystr(path)}: {error / np.linalg.norm(b)}"


@functools.cache
def exact_gradient():
    return run(gradient, attention_implementation="xla")


@pytest.mark.long
def test_forward_and_jvp_alone_are_those_of_plain_attention():
    def forward(model, params):
        return model.apply({"params": params}, X, T, TEXT._replace(r=T / 2))

    _, (u, du) = exact_gradient()
    assert_close(run(forward), u)
    assert_close(run(value_and_tangent), (u, du))


@pytest.mark.long
@pytest.mark.parametrize("remat", ["none", "names", "full"])
def test_the_gradient_of_meanflow_is_exact_under_every_remat_policy(remat):
    assert_close(run(gradient, remat=remat), exact_gradient())


@pytest.mark.long
def test_the_gradient_of_meanflow_is_exact_on_a_mesh():
    mesh = meshes.MeshConfig(fsdp=2, tensor=2, context=2).make()
    with jax.set_mesh(mesh):
        params = jax.device_put(random_params(), rules.shardings(random_params(), mesh))
        x = jax.device_put(X, meshes.batch_sharding(mesh))
        ours = jax.jit(functools.partial(gradient, make()))(params, x)
    assert_close(ours, exact_gradient())


@pytest.mark.parametrize("remat", ["none", "names", "full"])
def test_a_gradient_without_jvp_is_refused(remat):
    model = make(remat=remat)
    loss = jax.grad(lambda params: jnp.sum(model.apply({"params": params}, X, T, TEXT)))
    with pytest.raises(TypeError, match=r'inside jax.jvp only.*"xla", "tiled" or "cudnn"'):
        jax.eval_shape(loss, random_params())


def test_a_gradient_of_the_tangent_is_refused():
    loss = jax.grad(lambda params: jnp.sum(value_and_tangent(make(), params)[1]))
    with pytest.raises(TypeError, match="stop_gradient"):
        jax.eval_shape(loss, random_params())


def equations(jaxpr):
    """All steps of a program, those of loops and other inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.tree.leaves(list(equation.params.values())):
            yield from equations(inner) if hasattr(inner, "eqns") else ()


@pytest.mark.parametrize(
    ("remat", "per_width", "runs"), [("names", 28, 2), ("names_light", 20, 2), ("attention_only", 6, 2), ("full", 2, 4)]
)
def test_a_remat_policy_keeps_what_it_promises_under_jvp(monkeypatch, remat, per_width, runs):
    # Self- and cross-attention: two kernels in the body of the scan. Tracing needs no GPU; only these checks do.
    kernels = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{kernels}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{kernels}.check_compute_capability", lambda capability: True)
    gpu = types.SimpleNamespace(platform="gpu", device_kind="NVIDIA H200")
    monkeypatch.setattr("nova_jax.parallel.mesh.current_device", lambda: gpu)
    model = make(remat=remat, dtype=jnp.bfloat16)

    def residuals(params):
        return jax.vjp(functools.partial(meanflow, model), params, has_aux=True)[1]

    kept = jax.tree.leaves(jax.eval_shape(residuals, random_params()))
    stacked = [a for a in kept if a.shape[:2] == (SIZES["depth"], len(X)) and a.dtype == jnp.bfloat16]
    size = sum(a.size * a.dtype.itemsize for a in stacked) / (SIZES["depth"] * len(X) * SIZES["width"])
    n, l = 2 * 2 * 4, TEXT.text.shape[1]
    assert size == per_width * n + (0 if remat in ("attention_only", "full") else 2 * l * 2)  # keys and values of text

    program = jax.make_jaxpr(functools.partial(gradient, model))(random_params())
    steps = [equation.primitive.name for equation in equations(program.jaxpr)]
    assert steps.count(stack.FLASH_FORWARD) == runs
    assert steps.count("linear_call") == 2  # the backward pass repeats no tangent


@pytest.mark.long
def test_time_and_modulation_stay_in_float32_in_a_bfloat16_network():
    """The derivative in time is time_scale times that of a sinusoid: rounded to bfloat16 it would be lost."""
    fields = {"dtype": jnp.bfloat16, "time_scale": 1000.0}
    program = jax.make_jaxpr(functools.partial(value_and_tangent, make(**fields)))(random_params())
    steps = list(equations(program.jaxpr))
    waves = [e for e in steps if e.primitive.name in ("sin", "cos")]
    kernels = {(16, 32), (32, 6 * 32)}  # time_embed/in and time_embed_r/in; time_modulation
    products = [e for e in steps if e.primitive.name == "dot_general" and e.invars[1].aval.shape in kernels]
    assert len(waves) == 2 * 2 * 2  # sine and cosine of two times, and their derivatives
    assert len(products) == 3 * 2
    assert {v.aval.dtype for e in waves + products for v in (*e.invars, *e.outvars)} == {jnp.dtype(jnp.float32)}

    exact = run(value_and_tangent, time_scale=1000.0)
    rounded = run(value_and_tangent, **fields)
    for a, b in zip(rounded, exact, strict=True):
        assert a.dtype == jnp.float32
        assert np.linalg.norm(a - b) / np.linalg.norm(b) < 0.02
