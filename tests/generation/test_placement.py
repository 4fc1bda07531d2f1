"""A run on a mesh samples what it samples on one device, each device its part of the work."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import generation, sampling
from nova_jax.diffusion import FlowMatching
from nova_jax.generation import placement, program
from nova_jax.models import tiling
from nova_jax.models.dit import DiT
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.parallel import distributed, rules
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.runs import record
from nova_jax.types import Conditioning
from tests import tiny_run

NETWORK = TextToLatent(
    dit=DiT(width=32, depth=2, num_heads=4, in_channels=4, patch_size=(1, 1, 1), text_dim=8),
    text_encoder=tiny_run.ENCODER,
)
SHAPE = (1, 4, 4, 4)
SETTINGS = generation.SamplingSettings(sampler="euler", num_steps=3, guidance_scale=3.0)
PROMPTS, SEEDS = ["a red circle", "a blue square"], [3, 4]
MESHES = [{"data": 8}, {"data": 2, "fsdp": 4}, {"data": 2, "fsdp": 2, "tensor": 2}, {"data": 2, "context": 4}]


def mesh_of(**sizes):
    config = MeshConfig(**sizes)
    return config.make(jax.devices()[: np.prod(dataclasses.astuple(config))])


@functools.cache
def host_params():
    """Random ones of network and autoencoder, in which no gate is closed."""
    rng = np.random.default_rng(0)
    ids, mask = map(jnp.asarray, tiny_run.ENCODER.null(1))
    inputs = jnp.zeros((1, *SHAPE)), jnp.zeros(1), Conditioning(text_ids=ids, text_mask=mask)
    forms = (
        jax.eval_shape(NETWORK.init, jax.random.key(0), *inputs)["params"],
        jax.eval_shape(tiny_run.TINY_VAE.init, jax.random.key(0)),
    )
    return jax.tree.map(lambda a: 0.2 * rng.standard_normal(a.shape, np.float32), forms)


def trained_on(mesh):
    """The run with its parameters where the table puts them."""
    trees = host_params()
    if mesh is not None:
        trees = [jax.tree.map(distributed.place, tree, rules.shardings(tree, mesh)) for tree in trees]
    return generation.TrainedRun(
        network=NETWORK,
        params=trees[0],
        objective=FlowMatching(),
        codec=tiny_run.TINY_VAE,
        codec_params=trees[1],
        latent_shape=SHAPE,
        text_encoder=tiny_run.ENCODER,
        mesh=mesh,
    )


@functools.cache
def sampled_on_one_device():
    one = trained_on(None)
    latents = generation.generate_latents(one, PROMPTS, SEEDS, SETTINGS)
    return latents, generation.decode(one, latents)


def check_equals_one_device(mesh):
    expected, pixels = sampled_on_one_device()
    trained = trained_on(mesh)
    latents = generation.generate_latents(trained, PROMPTS, SEEDS, SETTINGS)
    np.testing.assert_allclose(latents, expected, atol=1e-5 * np.abs(expected).max())
    difference = generation.decode(trained, latents).astype(int) - pixels
    assert np.abs(difference).max() <= 1  # of 255, where rounding turned


@pytest.mark.long
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_every_mesh_samples_what_one_device_samples(sizes):
    check_equals_one_device(mesh_of(**sizes))


def lowered(mesh, rows, network=NETWORK.dit, length=4):
    """The sampling program of so many rows, guided, compiled for a mesh."""
    draw = program.make_draw(network, FlowMatching(), sampling.Euler(), "guided", None, SHAPE)
    run = trained_on(mesh)
    text = np.zeros((rows, length, 8), np.float32), np.ones((rows, length), bool)
    cond = Conditioning(text=text[0], text_mask=text[1])
    null = jax.tree.map(lambda leaf: leaf[:1], cond)
    arguments = run.params["dit"], cond, null, np.arange(rows, dtype=np.uint32), np.linspace(1, 0, 5), np.float32(3)
    with placement.scope(run):
        return draw.lower(*placement.put(run, arguments)).compile()


def test_two_devices_share_both_answers_of_guidance_to_a_single_sample():
    flops = [lowered(mesh, 1).cost_analysis()["flops"] for mesh in (None, mesh_of(data=2))]
    assert flops[1] < 0.55 * flops[0]


def test_rows_grow_until_the_mesh_divides_what_is_evaluated():
    clip, image = (37, 90, 160, 16), (1, 64, 64, 16)
    assert generation.rows_per_call(clip, mesh_of(data=2), answers=2) == 1
    assert generation.rows_per_call(clip, mesh_of(data=2, fsdp=4), answers=2) == 4
    assert generation.rows_per_call(clip, mesh_of(data=2)) == 2
    assert generation.rows_per_call(image, mesh_of(data=3, fsdp=2)) == 18
    assert generation.rows_per_call(image, mesh_of(context=8, data=1)) == 16
    assert [generation.rows_per_call(image, mesh_of(data=8), wanted=n) for n in (127, 128, 900)] == [16, 128, 128]


def test_the_mesh_that_is_chosen_gives_every_device_a_part(tmp_path):
    for shape, axes, batch_size in (
        ((1, 4, 4, 4), (8, 1, 1, 1), None),
        ((37, 90, 160, 16), (2, 1, 4, 1), None),
        ((1, 4, 4, 4), (4, 1, 2, 1), 12),
    ):
        (tmp_path / record.FILE).write_text(json.dumps({"config": {"model": {}}, "data": {"latent_shape": shape}}))
        chosen = generation.mesh_for(tmp_path, batch_size=batch_size)
        assert tuple(chosen.shape.values()) == axes
    assert dict(generation.mesh_for(tmp_path, MeshConfig(fsdp=4)).shape)["fsdp"] == 4
    with pytest.raises(ValueError, match="3 does not divide 8 devices"):
        generation.mesh_for(tmp_path, MeshConfig(fsdp=3))


@pytest.mark.long
def test_tiles_on_a_mesh_decode_to_those_of_one_device():
    latents = np.random.default_rng(1).standard_normal((1, 1, 12, 20, 4), np.float32)
    tiles = tiling.Tiles(size=(8, 8), overlap=2)
    one, many, whole = (
        generation.decode(trained_on(mesh)._replace(tiles=tiles if cut else None), latents).astype(int)
        for mesh, cut in ((None, True), (mesh_of(data=4, fsdp=2), True), (None, False))
    )
    assert np.abs(one - many).max() <= 1
    assert (one != whole).any()
