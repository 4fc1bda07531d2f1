"""One table places parameters, moments, EMA and teachers of every model; nothing is whole by accident."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from nova_jax.models import presets, text, text_to_latent, vae
from nova_jax.models.text import t5
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules
from nova_jax.training import optimizer, step
from nova_jax.types import Conditioning


@pytest.fixture(scope="module")
def mesh():
    return meshes.MeshConfig(data=1, fsdp=4, tensor=2).make()


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def dit_params(name):
    module = presets.dit(name)
    x, cond = array(1, 1, 8, 8, module.in_channels), Conditioning(text=array(1, 4, module.text_dim))
    return jax.eval_shape(module.init, jax.random.key(0), x, array(1), cond)["params"]


def spec(mesh, path, *shape):
    tree = array(*shape)
    for key in reversed(path.split("/")):
        tree = {key: tree}
    return jax.tree.leaves(rules.shardings(tree, mesh))[0].spec


def test_matrices_of_a_layer_alternate_between_column_and_row(mesh):
    assert spec(mesh, "blocks/self_attention/query/kernel", 3, 64, 64) == P(None, "fsdp", "tensor")
    assert spec(mesh, "blocks/self_attention/out/kernel", 3, 64, 64) == P(None, "tensor", "fsdp")
    assert spec(mesh, "blocks/mlp/up/kernel", 3, 64, 256) == P(None, "fsdp", "tensor")
    assert spec(mesh, "blocks/mlp/down/kernel", 3, 256, 64) == P(None, "tensor", "fsdp")


def test_a_spec_is_counted_from_the_last_dimension(mesh):
    assert spec(mesh, "mlp/up/kernel", 64, 256) == P("fsdp", "tensor")
    assert spec(mesh, "encoder/conv_in/kernel", 3, 3, 3, 16, 64) == P(None, None, None, None, ("fsdp", "tensor"))


def test_devices_that_share_tokens_share_parameters():
    mesh = meshes.MeshConfig(fsdp=2, context=2, tensor=2).make()
    assert spec(mesh, "blocks/mlp/up/kernel", 3, 64, 256) == P(None, ("fsdp", "context"), "tensor")
    assert spec(mesh, "blocks/mlp/down/kernel", 3, 256, 6) == P(None, "tensor", "fsdp")
    assert spec(mesh, "patch_embed/kernel", 64, 64) == P(None, ("fsdp", "context"))


def test_an_axis_that_does_not_divide_is_dropped_and_reported(mesh):
    tree = {"embed": {"embedding": array(64, 36)}, "decoder": {"conv_out": {"kernel": array(64, 3)}}}
    assert rules.shardings(tree, mesh)["embed"]["embedding"].spec == P(None, "fsdp")
    reports = rules.unsharded(tree, mesh)
    assert [(r.path, r.wanted, r.spec) for r in reports] == [
        ("decoder/conv_out/kernel", P(None, ("fsdp", "tensor")), P()),
        ("embed/embedding", P(None, ("fsdp", "tensor")), P(None, "fsdp")),
    ]
    assert all(report.fell_back for report in reports)
    assert rules.misfits(tree, mesh) == [
        "mesh.tensor=2 cuts no parameter of this model: use mesh.tensor=1",
        "the size 3 of decoder/conv_out/kernel does not divide over fsdp=4 x tensor=2, so it is whole on every device: "
        "a size of 8 would fit",
        "the size 36 of embed/embedding does not divide over fsdp=4 x tensor=2, so only fsdp cuts it: "
        "a size of 32 or a size of 40 or 4 devices would fit",
    ]


def test_a_large_array_that_its_rule_keeps_whole_is_reported(mesh):
    tree = {"blocks": {"modulation": array(100, 6, 1000)}}
    assert [report.path for report in rules.unsharded(tree, mesh)] == ["blocks/modulation"]
    assert rules.unsharded(tree, meshes.MeshConfig(data=8).make()) == []


def test_a_parameter_without_a_rule_is_refused_by_path_and_shape(mesh):
    with pytest.raises(ValueError, match=r"no sharding rule matches parameter blocks/novel/weight of shape \(3, 4\)"):
        rules.shardings({"blocks": {"novel": {"weight": array(3, 4)}}}, mesh)


def test_a_rule_with_more_dimensions_than_the_parameter_is_refused(mesh):
    with pytest.raises(ValueError, match=r"of parameter mlp/up/kernel needs 2 dimensions, its shape is \(3,\)"):
        rules.shardings({"mlp": {"up": {"kernel": array(3)}}}, mesh)


def assert_cut(tree, mesh, *, allowed=()):
    """Only the parameters named may be whole, or less cut than their rule says."""
    reported = {placement.path for placement in rules.unsharded(tree, mesh)}
    assert reported == set(allowed), f"not sharded as intended: {sorted(reported ^ set(allowed))}"


@pytest.mark.parametrize("name", sorted(presets.DIT))
def test_no_parameter_of_a_dit_is_whole_by_accident(name, mesh):
    params = dit_params(name)
    assert_cut(params, mesh)
    whole = sum(p.size for p in jax.tree.leaves(params))
    per_device = rules.bytes_per_device(params, mesh) / 4
    assert per_device < (1.15 if name == "nano" else 1.03) * whole / 8, "eight devices hold an eighth each"


def test_no_parameter_of_the_text_encoders_is_whole_by_accident(mesh):
    ids, mask = jnp.zeros((1, 64), jnp.int32), jnp.ones((1, 64), bool)
    byte = jax.eval_shape(text.ByteTextEncoder().init, jax.random.key(0), ids, mask)["params"]
    assert_cut(byte, mesh)
    tokens = map(jnp.asarray, text.WordTextEncoder().null(1))
    assert_cut(jax.eval_shape(text.WordTextEncoder().init, jax.random.key(0), *tokens)["params"], mesh)
    module = t5.T5Encoder(vocab_size=256, width=64, depth=2, num_heads=4, head_dim=16, mlp_width=128)
    assert_cut(jax.eval_shape(module.init, jax.random.key(0), ids, mask)["params"], mesh)


def test_of_the_autoencoder_only_the_layer_that_makes_pixels_is_whole(mesh):
    params = jax.eval_shape(vae.VAE().init, jax.random.key(0))
    assert_cut(params, mesh, allowed=["decoder/conv_out/kernel"])  # three output channels


@pytest.mark.parametrize("choice", [optimizer.AdamW(), optimizer.Muon()], ids=["AdamW", "Muon"])
def test_the_whole_state_follows_its_parameters(choice, mesh):
    module = text_to_latent.TextToLatent(dit=presets.dit("nano"), text_encoder=text.ByteTextEncoder())
    x, cond = jnp.zeros((1, 1, 8, 8, 16)), Conditioning(text_ids=jnp.zeros((1, 64), jnp.int32))
    init = lambda key: module.init(key, x, jnp.zeros(1), cond)["params"]  # noqa: E731
    start = lambda key: step.start(init(key), choice, lambda params: {"teacher": params})  # noqa: E731
    state = step.plan(start, jax.random.key(0), mesh=mesh)
    params = {
        p.path.removeprefix("params/"): p.spec for p in rules.placements(state, mesh) if p.path.startswith("params")
    }
    followers = [p for p in rules.placements(state, mesh) if p.shape and not p.path.startswith("params/")]
    for follower in followers:
        name = next(name for name in params if follower.path.endswith("/" + name))
        assert follower.spec == params[name], follower.path
    assert len(followers) >= 3 * len(params)  # ema, teacher, and at least one moment


def test_bytes_per_device_counts_what_a_device_holds(mesh):
    tree = {"mlp": {"up": {"kernel": array(64, 64), "bias": array(64)}}}
    assert rules.bytes_per_device(tree, mesh) == 4 * (64 * 64 // 8 + 64 // 2)
