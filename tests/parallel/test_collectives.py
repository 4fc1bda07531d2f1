"""The reader of compiled programs, and what training sends against the formulas."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from experiments.benchmarks import collectives as programs
from nova_jax.layers import attention
from nova_jax.parallel import collectives
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import build

MESH = {"data": 2, "fsdp": 2, "context": 1, "tensor": 2}


def read(function, mesh, *arguments):
    return collectives.read(jax.jit(function).lower(*arguments).compile().as_text(), mesh.shape)


def test_every_kind_is_found_with_its_axes_bytes_and_turns():
    mesh = meshes.MeshConfig(**MESH).make()
    lax = jax.lax

    def exchange(x):  # 64 numbers, 256 bytes, on every device
        def turn(x, _):
            x = lax.psum(x, ("data", "tensor")) / 4
            x = lax.all_to_all(x, "tensor", 0, 0, tiled=True)
            return lax.ppermute(x, "fsdp", [(0, 1), (1, 0)]), None

        x, _ = lax.scan(turn, x, length=3)
        return lax.all_gather(lax.psum_scatter(jnp.sin(x), "data", tiled=True), "tensor", tiled=True)

    mapped = jax.shard_map(exchange, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    found = read(mapped, mesh, jnp.zeros(64))
    assert {(c.kind, c.axes, c.ways, c.size, c.times) for c in found} == {
        ("all-reduce", ("data", "tensor"), 4, 256, 3),
        ("all-to-all", ("tensor",), 2, 256, 3),
        ("collective-permute", ("fsdp",), 2, 256, 3),
        ("reduce-scatter", ("data",), 2, 128, 1),
        ("all-gather", ("tensor",), 2, 256, 1),
    }
    assert {c.kind: c.sent for c in found} == {
        "all-reduce": 3 * collectives.reduce(256, 4),
        "all-to-all": 3 * collectives.gather(256, 2),
        "collective-permute": 3 * 256,
        "reduce-scatter": collectives.gather(256, 2),
        "all-gather": collectives.gather(256, 2),
    }
    assert collectives.sent(found, axis="tensor") == 3 * 384 + 3 * 128 + 128
    assert collectives.sent(found, kind="all-gather", axis="data") == 0


def test_a_sum_of_which_a_device_keeps_its_part_is_a_reduce_scatter():
    mesh = meshes.MeshConfig(data=1, fsdp=8).make()
    cut = NamedSharding(mesh, P("fsdp"))
    x = jax.ShapeDtypeStruct((16, 8), jnp.float32, sharding=cut)
    product = functools.partial(jnp.einsum, "bi,bj->ij")
    kept = jax.jit(lambda x: 1 + product(x, jnp.sin(x)), out_shardings=cut).lower(x).compile().as_text()
    (part,) = collectives.read(kept, mesh.shape)
    assert (part.kind, part.size, part.sent) == ("reduce-scatter", 8 * 4, 7 * 8 * 4)
    whole = jax.jit(lambda x: 1 + product(x, jnp.sin(x)), out_shardings=NamedSharding(mesh, P())).lower(x).compile()
    assert [c.kind for c in collectives.read(whole.as_text(), mesh.shape)] == ["all-reduce"]


def test_exchanges_that_accelerators_start_and_end_apart_are_read_once():
    hlo = """
ENTRY %main (x: f32[4]) -> f32[8] {
  %x = f32[4]{0:T(256)} parameter(0)
  %start = (f32[4]{0}, f32[8]{0}) all-gather-start(f32[4]{0} %x), replica_groups=[4,2]<=[2,2,2]T(2,0,1), dimensions={0}
  %p = (bf16[4]{0}, bf16[4]{0}, u32[], u32[]) collective-permute-start(bf16[4]{0} %y), source_target_pairs={{0,2},{2,0}}
  ROOT %done = f32[8]{0} all-gather-done((f32[4]{0}, f32[8]{0}) %start)
}
"""
    gathered, permuted = collectives.read(hlo, MESH)
    assert (gathered.kind, gathered.axes, gathered.ways, gathered.size) == ("all-gather", ("fsdp",), 2, 32)
    assert (permuted.kind, permuted.axes, permuted.sent) == ("collective-permute", ("fsdp",), 8)


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups={}", ("data", "fsdp", "tensor")),
        ("replica_groups=[2,4]<=[8]", ("fsdp", "tensor")),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b':(1)2}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}", ("data", "tensor")),
        ("replica_groups=mesh['a'=1,'b'=2,'c'=4], device_ids=([2,4]T(1,0)) {'b'}", ("fsdp",)),
    ],
)
def test_groups_of_devices_are_read_in_every_form(groups, axes):
    hlo = f"ENTRY %main (x: f32[4]) -> f32[4] {{\n  ROOT %y = f32[4] all-reduce(f32[4] %x), {groups}, to_apply=%add\n}}"
    (found,) = collectives.read(hlo, MESH)
    assert found.axes == axes


def test_an_exchange_in_a_loop_of_unknown_length_is_refused():
    mesh = meshes.MeshConfig(data=8).make()

    def search(x):
        return jax.lax.while_loop(lambda x: x.sum() < 1e3, lambda x: jax.lax.psum(x, "data"), x)

    mapped = jax.shard_map(search, mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=False)
    with pytest.raises(ValueError, match="runs in a loop whose number of turns the compiler does not know"):
        read(mapped, mesh, jnp.ones(8))


def check(row):
    assert row["formula"], row
    assert 0.9 < row["ratio"] < 1.1, row


@pytest.mark.long
@pytest.mark.parametrize("sizes", programs.MESHES, ids=str)
def test_a_training_step_sends_what_the_formulas_say(sizes):
    *kinds, whole = programs.compare("training step", sizes)
    assert kinds
    for row in (*kinds, whole):
        check(row)
    shapes = jax.eval_shape(
        lambda key: build.init_params(programs.MODEL, programs.make_example(), key), jax.random.key(0)
    )
    weights = 4 * programs.count(shapes)
    tokens = 4 * programs.BATCH * programs.TOKENS * programs.MODEL.width
    formulas = {
        "data": collectives.data_parallel(weights, 8),
        "fsdp": collectives.fsdp(weights, weights, 8),
        "tensor": collectives.tensor_parallel(tokens, 8, programs.MODEL.depth),
    }
    if len(sizes) == 1:
        assert whole["bytes"] == pytest.approx(formulas[next(iter(sizes))], rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("sizes", programs.SAMPLING_MESHES, ids=str)
def test_guided_sampling_sends_what_the_formulas_say(sizes):
    *kinds, whole = programs.compare("guided sampling", sizes)
    for row in (*kinds, whole):
        check(row)
    latents = 4 * math.prod(programs.LATENTS)
    tokens = 2 * 4 * programs.TOKENS * programs.MODEL.width  # both answers to one sample
    formulas = {
        "data": collectives.guidance_parallel(
            programs.num_samples({"data": 1, "fsdp": 1, **sizes}) * latents, sizes.get("data", 1)
        ),
        "tensor": collectives.tensor_parallel(tokens, 8, programs.MODEL.depth) / 2,
    }
    if len(sizes) == 1 and (axis := next(iter(sizes))) in formulas:
        assert whole["bytes"] == pytest.approx(programs.STEPS * formulas[axis], rel=0.1)


@pytest.mark.long
def test_rows_of_whole_samples_need_no_exchange_for_their_guidance():
    """Eight samples on eight devices: both answers to a sample lie on one of them."""
    mesh = meshes.MeshConfig(data=8).make()
    program, _ = programs.compile_sampling(mesh, samples=8)
    assert collectives.read(program.as_text(), mesh.shape) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("degree", "expected"),
    [
        (8, lambda tokens: collectives.ulysses(tokens, 8, 1)),
        (2, lambda tokens: collectives.ulysses(tokens / 4, 2, 1) + collectives.ring(tokens / 2, 4, 1)),
        (1, lambda tokens: collectives.ring(tokens, 8, 1)),
    ],
    ids=["ulysses", "ulysses and ring", "ring"],
)
def test_attention_of_cut_tokens_sends_what_the_formulas_say(degree, expected):
    mesh = meshes.MeshConfig(data=1, context=8).make()
    x = jax.ShapeDtypeStruct((2, 64, 8, 16), jnp.float32, sharding=NamedSharding(mesh, P(None, "context")))

    @jax.checkpoint  # as in a block: or the first turn of the ring would be kept for the backward pass
    def attend(q, k, v):
        return attention.attend_cut(q, k, v, shares_keys=True, ulysses_degree=degree)

    with jax.set_mesh(mesh):
        found = read(jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v))), (0, 1, 2)), mesh, x, x, x)
    assert collectives.sent(found) == pytest.approx(expected(x.size * 4), rel=0.1)
