"""Tokens over the context axis: their layout, attention across devices, and whole networks equal to one device."""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nova_jax import sampling
from nova_jax.diffusion import denoiser, schedules
from nova_jax.layers import attention, rope
from nova_jax.models import dit
from nova_jax.parallel import context, distributed, rules
from nova_jax.parallel import mesh as meshes
from nova_jax.sampling import time_grids
from nova_jax.training import optimizer, step
from nova_jax.types import Batch, Conditioning


def make_mesh(data=1, fsdp=1, context=1, tensor=1):
    return meshes.MeshConfig(data=data, fsdp=fsdp, context=context, tensor=tensor).make(
        jax.devices()[: data * fsdp * context * tensor]
    )


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def relative_error(tree, reference):
    """The largest relative error, in the 2-norm, of any leaf."""
    pairs = zip(jax.tree.leaves(jax.device_get(tree)), jax.tree.leaves(jax.device_get(reference)), strict=True)
    return max(np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs)


# Layout.


def test_parts_join_and_come_apart_in_the_order_of_the_slots():
    parts = normal(2, 13, 3), normal(2, 4, 3, seed=1), normal(2, 8, 3, seed=2)
    lengths = tuple(a.shape[1] for a in parts)
    with jax.set_mesh(make_mesh(context=4)):
        joined = jax.jit(lambda *parts: context.join(*map(context.cut, parts)))(*parts)
        slots = context.slots(*lengths)
        back = [context.part(joined, lengths, i) for i in range(3)]
    assert joined.sharding.spec == P(None, "context")
    assert (slots.reshape(4, -1)[1] == [4, 5, 6, 7, 14, 19, 20]).all(), "device 1 has the second share of every part"
    assert (slots < 0).sum() == 3
    np.testing.assert_array_equal(joined[:, slots >= 0], jnp.concatenate(parts, axis=1)[:, slots[slots >= 0]])
    assert not joined[:, slots < 0].any()
    jax.tree.map(np.testing.assert_array_equal, tuple(back), parts)


def test_without_a_mesh_parts_lie_one_after_the_other():
    a, b = normal(2, 5, 3), normal(2, 2, 3, seed=1)
    joined = context.join(context.cut(a), context.cut(b))
    np.testing.assert_array_equal(joined, jnp.concatenate([a, b], axis=1))
    np.testing.assert_array_equal(context.slots(5, 2), np.arange(7))
    np.testing.assert_array_equal(context.part(joined, (5, 2), 1), b)


@pytest.mark.parametrize(
    ("heads", "context_size", "tensor", "width", "expected"),
    [
        (16, 8, 1, None, (8, 1)),
        (12, 8, 1, None, (4, 2)),
        (8, 4, 8, None, (1, 4)),
        (9, 2, 2, None, (1, 2)),
        (8, 8, 1, 2, (2, 4)),
        (8, 8, 1, 1, (1, 8)),
    ],
)
def test_heads_and_devices_decide_who_trades_and_who_forms_rings(heads, context_size, tensor, width, expected):
    ring = context.ways(heads, context_size, tensor, width)
    assert (ring.width, ring.length) == expected


def test_a_ulysses_degree_that_does_not_fit_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"ulysses_degree=8 must divide mesh.context=8 and the 12 heads.*\[1, 2, 4\]"):
        context.ways(12, 8, 1, 8)


def test_a_run_is_told_of_rings_that_heads_force_and_of_an_axis_without_tokens():
    mesh = make_mesh(context=8)
    assert context.notes(16, mesh) == context.notes(12, mesh, 1) == context.notes(None, make_mesh(data=8)) == []
    (note,) = context.notes(12, mesh)
    assert re.search(r"does not divide the 12 heads.*rings of 2; mesh.context=4, or 8 or 16 heads a device", note)
    (note,) = context.notes(None, mesh)
    assert "mesh.context=8 cuts parameters alone" in note


# Attention.

B, N, HEADS, SIZE = 2, 24, 4, 8
QKV = tuple(normal(B, N, HEADS, SIZE, seed=i) for i in range(3))
DIRECTION = tuple(normal(B, N, HEADS, SIZE, seed=3 + i) for i in range(3))
MASK = np.random.default_rng(9).random((B, N)) < 0.5
MASK[0, :12] = False  # all keys of the first devices
MASK = jnp.asarray(MASK)


def softmax_attention(q, k, v, mask):
    logits = jnp.einsum("bnkq,blkq->bknl", q, k) / q.shape[-1] ** 0.5
    where = None if mask is None else jnp.broadcast_to(mask[:, None, None], logits.shape)
    return jnp.einsum("bknl,blkq->bnkq", jax.nn.softmax(logits, where=where), v)


def energy(attend, qkv, mask):
    return jnp.sum(jnp.sin(attend(*qkv, mask)))


def tangent(attend, qkv, mask):
    return jax.jvp(lambda *qkv: attend(*qkv, mask), qkv, DIRECTION)[1]


def slope(attend, qkv, mask):
    return jnp.sum(tangent(attend, qkv, mask) ** 2)


def target_loss(attend, qkv, mask):
    out, du = jax.jvp(lambda *qkv: attend(*qkv, mask), qkv, DIRECTION)
    return jnp.sum((out - jax.lax.stop_gradient(jnp.sin(out) - du)) ** 2)


def attend_on(width, implementation="xla", shares_keys=True):
    return lambda q, k, v, mask: attention.attend_cut(
        q, k, v, shares_keys=shares_keys, mask=mask, implementation=implementation, ulysses_degree=width
    )


def check(mesh, attend, functions, mask, qkv=QKV):
    for function in functions:
        exact = jax.jit(functools.partial(function, softmax_attention))(qkv, mask)
        with jax.set_mesh(mesh):
            ours = jax.jit(functools.partial(function, attend))(qkv, mask)
        assert relative_error(ours, exact) < 1e-5


ALL = (lambda attend, qkv, mask: attend(*qkv, mask), jax.grad(energy, 1), tangent, jax.grad(slope, 1))


@pytest.mark.parametrize(
    ("width", "mask"),
    [
        pytest.param(2, MASK, id="ulysses_ring_masked"),
        pytest.param(2, None, id="ulysses_ring", marks=pytest.mark.long),
        pytest.param(4, MASK, id="ulysses_masked", marks=pytest.mark.long),
        pytest.param(1, MASK, id="ring_masked", marks=pytest.mark.long),
    ],
)
def test_attention_across_devices_has_every_derivative_of_the_softmax_formula(width, mask):
    check(make_mesh(context=4), attend_on(width), ALL, mask)


@pytest.mark.long
@pytest.mark.parametrize("width", [2, 1])
def test_it_composes_with_cut_samples_and_cut_heads(width):
    check(make_mesh(fsdp=2, context=2, tensor=2), attend_on(width, "tiled"), ALL, MASK)
    check(make_mesh(data=2, context=2, tensor=2), attend_on(width, None), ALL[:2], None)


@pytest.mark.long
@pytest.mark.parametrize("width", [4, 1])
def test_flash_with_tangents_is_exact_across_devices(width):
    functions = (ALL[0], tangent, jax.grad(target_loss, 1))
    check(make_mesh(context=4), attend_on(width, "flash_jvp"), functions, MASK)


@pytest.mark.parametrize("implementation", ["xla", "tiled"])
def test_keys_that_every_device_has_are_read_where_they_are(implementation):
    text = QKV[0], *(a[:, :7] for a in QKV[1:])
    attend = attend_on(None, implementation, shares_keys=False)
    check(make_mesh(context=4, tensor=2), attend, ALL[:2], MASK[:, 12:19], text)
    with jax.set_mesh(make_mesh(context=4, tensor=2)):
        q = jax.ShapeDtypeStruct((B, N, HEADS, SIZE), jnp.float32, sharding=sharding("context", "tensor"))
        keys = jax.ShapeDtypeStruct((B, 7, HEADS, SIZE), jnp.float32, sharding=sharding(None, "tensor"))
        compiled = jax.jit(attend).lower(q, keys, keys, None).compile()
    assert not collectives(compiled)


@pytest.mark.long
@pytest.mark.parametrize("blocks", [1, 3])
def test_the_ring_adds_blocks_of_keys_and_fills_up_the_last(blocks, monkeypatch):
    monkeypatch.setattr("nova_jax.layers.attention_ring.KEY_BLOCK", {1: 64, 3: 5}[blocks])
    check(make_mesh(context=2), attend_on(1), ALL, None)
    check(make_mesh(context=2), attend_on(1), ALL[:2], MASK)


def test_tokens_that_do_not_divide_are_refused():
    with jax.set_mesh(make_mesh(context=4)), pytest.raises(ValueError, match=r"22 tokens do not divide.*context.cut"):
        jax.eval_shape(attend_on(None), *(a[:, :22] for a in QKV), None)


# What is sent.


def sharding(*axes):
    return NamedSharding(jax.sharding.get_mesh(), P(("data", "fsdp"), *axes))


KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"


def collectives(compiled):
    """(kind, shapes of the result) of every collective in a compiled program."""
    found = []
    for line in compiled.as_text().splitlines():
        if match := re.search(rf" = (.*?) ({KINDS})(?:-start)?\(", line):
            shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
            found += [(match[2], [[int(n) for n in shape.split(",") if n] for shape in shapes])]
    return found


@pytest.mark.parametrize(("width", "expected"), [(4, {"all-to-all": 4}), (1, {"collective-permute": 2 * 3}), (2, None)])
def test_queries_keys_and_values_leave_once_after_the_rotation(width, expected):
    expected = expected or {"all-to-all": 4, "collective-permute": 2}
    layer = attention.MultiHeadAttention(num_heads=HEADS, ulysses_degree=width)
    n, d = 16, 32
    rotation = rope.grid_rotation(np.arange(n), 1, 1, d // HEADS)
    params = layer.init(jax.random.key(0), jnp.zeros((1, n, d)), jnp.zeros((1, n, d)))
    with jax.set_mesh(make_mesh(context=4)):
        x = jax.ShapeDtypeStruct((1, n, d), jnp.float32, sharding=sharding("context"))
        run = jax.jit(lambda params, x: layer.apply(params, x, x, rotation=rotation), out_shardings=x.sharding)
        found = [kind for kind, _ in collectives(run.lower(params, x).compile())]
    assert {kind: found.count(kind) for kind in found} == expected


@pytest.mark.parametrize(("width", "queries", "keys"), [(4, (N, 1), (N, 1)), (2, (N // 2, 2), (N, 2))])
def test_a_flash_kernel_reads_all_tokens_for_a_share_of_the_heads(width, queries, keys, monkeypatch):
    # Lowering needs no GPU; only these checks do.
    kernels = "jax._src.cudnn.fused_attention_stablehlo"
    monkeypatch.setattr(f"{kernels}.check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(f"{kernels}.check_compute_capability", lambda capability: True)
    half = tuple(a.astype(jnp.bfloat16) for a in QKV)
    with jax.set_mesh(make_mesh(context=4)):
        gradient = jax.jit(jax.grad(functools.partial(energy, attend_on(width, "cudnn"))))
        program = gradient.trace(half, None).lower(lowering_platforms=("cuda",)).as_text()
    calls = re.findall(r"custom_call @__cudnn\$fmha\w*\(.*?: \(tensor<(.*?)>, tensor<(.*?)>", program)
    expected = tuple(f"{B}x{n}x{heads}x{SIZE}xbf16" for n, heads in (queries, keys))
    assert calls == [expected] * 2, "forward and backward"


# Whole networks.


@pytest.fixture
def quick_compilation():
    """Half the compile time, and the same arithmetic on both sides of every comparison."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


SIZES = {"width": 32, "depth": 2, "num_heads": 4, "in_channels": 3, "text_dim": 5, "freq_dim": 16, "remat": "names"}
BATCH = 8
X = np.random.default_rng(1).standard_normal((BATCH, 5, 6, 34, 3)).astype(np.float32)  # 5 frames, 255 tokens
TEXT = Conditioning(
    text=np.random.default_rng(2).standard_normal((BATCH, 6, 5)).astype(np.float32),
    text_mask=np.arange(6)[None] < (1 + np.arange(BATCH) % 6)[:, None],
)
EDITING = {
    "aligned_channels": 2, "num_frame_roles": 2, "has_palette": True, "num_tasks": 3, "has_absolute_positions": True,
}  # fmt: skip
EDITED = TEXT._replace(
    aligned=X[..., :2] ** 2,
    frames=X[:, :3] / 2,
    frame_roles=np.arange(BATCH * 3).reshape(BATCH, 3) % 2,
    frame_times=np.linspace(0, 0.5, BATCH * 3, dtype=np.float32).reshape(BATCH, 3),
    palette=X[:, 0, 0, :3],
    palette_mask=np.arange(3)[None] <= np.arange(BATCH)[:, None] % 3,
    task=np.arange(BATCH) % 3,
)
CASES = {
    "frames": ({}, TEXT),
    "joint": ({"text_attention": "joint", "pooled_dim": 0}, TEXT),
    "editing": (EDITING, EDITED),
}


def per_frame(network, params, batch, key):
    """Flow matching with a time for each frame."""
    b, f = batch.x0.shape[:2]
    key_t, key_eps = jax.random.split(key)
    is_joint = "cross_attention" not in params["blocks"]
    t = jnp.broadcast_to(jax.random.uniform(key_t, (b, 1 if is_joint else f)), (b, f))
    eps, s = jax.random.normal(key_eps, batch.x0.shape), t[:, :, None, None, None]
    guess = network(params, (1 - s) * batch.x0 + s * eps, t[:, 0] if is_joint else t, batch.cond)
    return jnp.mean((guess - (eps - batch.x0)) ** 2), {}


@functools.cache
def random_params(case):
    """Parameters away from initialisation, where gates and heads are zero."""
    fields, cond = CASES[case]
    shapes = jax.eval_shape(dit.DiT(**SIZES, **fields).init, jax.random.key(0), X, jnp.zeros(BATCH), cond)["params"]
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda a: rng.standard_normal(a.shape).astype(np.float32) * a.shape[-1] ** -0.5, shapes)


def train(case, mesh=None, **fields):
    """Losses of five steps, and the parameters."""
    network, cond = dit.DiT(**SIZES, **CASES[case][0], **fields), CASES[case][1]
    adam = optimizer.AdamW(peak=1e-3, warmup=1)
    state = step.build(lambda params: step.start(params, adam), random_params(case), mesh=mesh)
    batch = Batch(X, cond)
    if mesh is not None:
        batch = distributed.global_batch(batch, meshes.batch_sharding(mesh), BATCH)
    train_step = step.make_step(per_frame, lambda p, *args: network.apply({"params": p}, *args), adam)
    losses = []
    for _ in range(5):
        state, metrics = train_step(state, batch)
        losses.append(metrics["loss"])
    return jnp.stack(losses), state.params


def sample(case, mesh=None, **fields):
    """Eight Euler steps of one jitted program."""
    network, cond = dit.DiT(**SIZES, **CASES[case][0], **fields), CASES[case][1]
    params, x = random_params(case), jnp.asarray(X)
    if mesh is not None:
        params = jax.device_put(params, rules.shardings(params, mesh))
        x, cond = jax.device_put((x, cond), meshes.batch_sharding(mesh))

    @jax.jit
    def run(params, x, cond):
        guess = lambda p, x, t, c: network.apply({"params": p}, x, t, c)  # noqa: E731
        plain = denoiser.make_denoiser(guess, params, schedules.RectifiedFlow(), "velocity")
        times, schedule = time_grids.uniform(8), schedules.RectifiedFlow()
        return sampling.sample(plain, x, sampler=sampling.Euler(), times=times, schedule=schedule, cond=cond).x

    return run(params, x, cond)


@functools.cache
def on_one_device(case):
    return jax.device_get((train(case), sample(case)))


def check_network(case, sizes, record=lambda name, value: None, **fields):
    """Losses, parameters after five steps and samples of a mesh against those of one device; `record` gets errors."""
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        (losses, params), sampled = train(case, mesh, **fields), sample(case, mesh, **fields)
    (expected, expected_params), expected_sampled = on_one_device(case)
    record("loss", float(np.max(np.abs(losses / expected - 1))))
    record("parameters", float(relative_error(params, expected_params)))
    record("samples", float(relative_error(sampled, expected_sampled)))
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    errors = relative_error(params, expected_params), relative_error(sampled, expected_sampled)
    assert max(errors) < 1e-5, errors


def factorizations(n, parts):
    return [sizes for sizes in itertools.product((1, 2, 4, 8), repeat=parts) if np.prod(sizes) == n]


GRID = [(sizes, degree) for sizes in factorizations(8, 4) for degree in ([None, 1] if sizes[2] > 1 else [None])]
# Every axis beside every other one, and each form alone; the rest of the grid is run by hand (-m slow).
LONG = [((1, 1, 8, 1), None), ((1, 1, 8, 1), 1), ((2, 1, 2, 2), 1), ((1, 2, 2, 2), None), ((2, 2, 2, 1), None)]


@pytest.mark.parametrize(
    ("sizes", "degree"),
    [pytest.param(*case, marks=pytest.mark.long if case in LONG else pytest.mark.slow) for case in GRID],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_every_mesh_trains_and_samples_like_one_device(quick_compilation, record_property, sizes, degree):
    check_network("frames", sizes, record_property, ulysses_degree=degree)


@pytest.mark.long
@pytest.mark.parametrize("case", ["joint", "editing"])
@pytest.mark.parametrize(("sizes", "degree"), [((1, 1, 8, 1), None), ((2, 1, 2, 2), 1)])
def test_text_frames_and_tokens_of_all_conditions_lie_among_cut_tokens(quick_compilation, case, sizes, degree):
    check_network(case, sizes, ulysses_degree=degree)


def compile_step(mesh, latents, **fields):
    """A training step on one sample, layers unrolled: XLA counts the body of a loop once."""
    sizes = SIZES | {"width": 128, "num_heads": 8, "scan_unroll": 2, "gate_init": "random"} | fields
    network = dit.DiT(**sizes)
    x, text = jnp.zeros((1, *latents, 3)), jnp.zeros((1, 4, 5))
    adam, cond = optimizer.AdamW(), Conditioning(text=text)
    start = lambda key: step.start(network.init(key, x, jnp.zeros(1), cond)["params"], adam)  # noqa: E731
    with jax.set_mesh(mesh):
        state = step.plan(start, jax.random.key(0), mesh=mesh)
        batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding()), Batch(x, cond))
        train_step = step.make_step(per_frame, lambda p, *args: network.apply({"params": p}, *args), adam)
        return train_step.lower(state, batch).compile()


@pytest.mark.long
@pytest.mark.parametrize("latents", [(5, 24, 34), (1, 30, 34)], ids=["5_frames_of_204", "255_tokens"])
def test_a_device_computes_its_share_and_no_array_of_all_tokens_is_gathered(latents):
    slots = -(-np.prod(latents) // 4 // 8) * 8
    flops = lambda compiled: compiled.cost_analysis()["flops"]  # noqa: E731
    one = flops(compile_step(make_mesh(), latents))
    for degree in (None, 2, 1):
        compiled = compile_step(make_mesh(context=8), latents, ulysses_degree=degree)
        share = flops(compiled) / one
        whole = [
            (kind, shape)
            for kind, shapes in collectives(compiled)
            for shape in shapes
            if slots in shape and np.prod(shape) >= slots * 128
        ]
        kinds = [kind for kind, _ in collectives(compiled)]
        counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
        print(f"{latents}, ulysses_degree={degree}: {8 * share:.3f} / 8 of the FLOPs, {counts}")
        assert not whole, degree
        assert share <= 1.1 / 8, degree
