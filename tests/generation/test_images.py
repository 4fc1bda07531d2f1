"""An editing model from pretraining to requests: it starts as it was, trains on every task, and keeps what it must."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import experiment, generation, tasks
from nova_jax.diffusion import DropRates, FlowMatching
from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import build
from nova_jax.training import step
from nova_jax.training.optimizer import AdamW
from nova_jax.types import Batch, Conditioning
from tests import tiny_canvas

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (32, 32, 3), np.uint8)
MASK = np.full((32, 32), 255, np.uint8)
MASK[8:20, 4:20] = 0  # black


@pytest.fixture(scope="module")
def runs(once):
    """Pretraining, which stays as it was initialised, and editing."""
    folder = once("tiny_canvas", tiny_canvas.train)
    return [folder / "pretraining", folder / "canvas"]


@pytest.fixture(scope="module")
def trained(runs):
    """The editing run away from its start, where many weights are zero."""
    run, rng = generation.load_run(runs[1]), np.random.default_rng(0)
    moved = jax.tree.map(lambda a: a + 0.2 * rng.standard_normal(a.shape, np.float32), run.params)
    return run._replace(params=moved)


@pytest.fixture(scope="module")
def limits(trained):
    return generation.images.limits_of(trained)


def asked(**fields):
    return tasks.ImageSettings(cfg_scale=2.0, **fields)


@pytest.mark.long
def test_the_mixture_trains_every_part_and_counts_its_mean_flops(runs):
    lines = [json.loads(line) for line in (runs[1] / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4]
    plain, mixed = (json.loads((run / "config.json").read_text())["flops_per_step"] for run in runs)
    assert mixed > plain


@pytest.mark.long
def test_an_editing_run_starts_as_the_run_that_it_grows_from_to_the_bit(runs, tmp_path):
    config = dataclasses.replace(tiny_canvas.make_configs(tmp_path)[1], start_from=str(runs[0]), steps=0)
    state = experiment.run(config).state
    old = generation.load_run(runs[0])
    grown = old._replace(network=config.model, params=state.ema)
    settings = generation.SamplingSettings(sampler="euler", num_steps=3, guidance_scale=2.0)
    before, after = (generation.generate(run, ["a red circle"], [3], settings) for run in (old, grown))
    np.testing.assert_array_equal(before, after)


@pytest.mark.long
def test_inpainting_returns_the_source_outside_the_mask_bit_for_bit(trained, limits):
    requests = [
        tasks.Inpaint(image=IMAGE, mask_image=MASK, text=text, limits=limits, settings=asked(count=2))
        for text in ("a red circle", None)
    ]
    for pictures in generation.images.draw_all(trained, requests):
        assert pictures.shape == (2, 32, 32, 3)
        np.testing.assert_array_equal(pictures[:, MASK == 255], np.stack([IMAGE[MASK == 255]] * 2))
        assert (pictures[:, MASK == 0] != IMAGE[MASK == 0]).any()


@pytest.mark.long
def test_outpainting_keeps_black_and_its_soft_boundary_lies_in_the_white(trained, limits):
    keeps = MASK == 0
    drawn = {
        mode: generation.images.draw(
            trained,
            tasks.Outpaint(image=IMAGE, mask_image=MASK, text="x", mode=mode, limits=limits, settings=asked()),
        )[0]
        for mode in ("DEFAULT", "PRECISE")
    }
    for picture in drawn.values():
        np.testing.assert_array_equal(picture[keeps], IMAGE[keeps])
    differs = (drawn["DEFAULT"] != drawn["PRECISE"]).any(axis=-1)
    weight = generation.images.soften(MASK == 255)
    assert differs.any()
    assert not differs[weight == 1].any()


def test_the_boundary_of_a_mask_softens_inwards_only():
    weight = generation.images.soften(MASK == 255)
    assert (weight[MASK == 0] == 0).all()
    assert 0 < weight[MASK == 255].min() < 1
    assert weight[0, 0] == 1  # the edge of the image is no boundary


@pytest.mark.long
def test_background_removal_keeps_the_colours_and_adds_alpha(trained, limits):
    picture = generation.images.draw(trained, tasks.RemoveBackground(image=IMAGE, limits=limits))[0]
    assert picture.shape == (32, 32, 4)
    np.testing.assert_array_equal(picture[..., :3], IMAGE)


@pytest.mark.long
def test_every_kind_of_request_is_drawn_the_same_alone_and_among_others(trained, limits):
    common = {"limits": limits, "settings": asked()}
    requests = [
        tasks.TextToImage(text="a red circle", **common),
        tasks.TextToImage(text="a red circle", negative_text="a square", **common),
        tasks.TextToImage(text="a red circle", condition_image=IMAGE, control_strength=0.5, **common),
        tasks.TextToImage(text="a red circle", condition_image=IMAGE, control_mode="SEGMENTATION", **common),
        tasks.Vary(images=[IMAGE, IMAGE[::-1]], **common),
        tasks.Vary(images=[IMAGE], text="on black", similarity_strength=1.0, **common),
        tasks.ColorGuided(colors=["#ff0000", "#00ff00"], text="a circle", **common),
        tasks.ColorGuided(colors=["#0000ff"], text="a circle", reference_image=IMAGE, **common),
    ]
    together = generation.images.draw_all(trained, requests)
    for request, pictures in zip(requests, together, strict=True):
        np.testing.assert_array_equal(generation.images.draw(trained, request), pictures)
    assert len({pictures.tobytes() for pictures in together}) == len(requests)


@pytest.mark.long
def test_a_mask_prompt_is_answered_by_the_network_itself(trained, limits, monkeypatch):
    found = np.zeros((32, 32), bool)
    found[:16] = True
    monkeypatch.setattr(generation.images, "locate", lambda trained, pictures, prompts: [found for _ in pictures])
    request = tasks.Inpaint(image=IMAGE, mask_prompt="the top", text="x", limits=limits, settings=asked())
    by_mask = tasks.Inpaint(
        image=IMAGE, mask_image=np.where(found, 0, 255).astype(np.uint8), text="x", limits=limits, settings=asked()
    )
    np.testing.assert_array_equal(generation.images.draw(trained, request), generation.images.draw(trained, by_mask))


@pytest.mark.long
def test_a_mask_prompt_that_finds_nothing_says_so(trained, limits, monkeypatch):
    monkeypatch.setattr(generation.images, "locate", lambda trained, pictures, prompts: [np.zeros((32, 32), bool)])
    request = tasks.Inpaint(image=IMAGE, mask_prompt="a whale", text="x", limits=limits, settings=asked())
    with pytest.raises(ValueError, match="'a whale' found nothing"):
        generation.images.draw(trained, request)


@pytest.mark.long
def test_located_masks_have_the_size_of_their_pictures(trained):
    (mask,) = generation.images.locate(trained, [IMAGE], ["the circle"])
    assert mask.shape == (32, 32)
    assert mask.dtype == bool


@pytest.mark.long
def test_seeds_count_up_over_the_pictures_of_a_request(trained, limits):
    def make(seed, count):
        settings = asked(seed=seed, count=count)
        return generation.images.draw(trained, tasks.TextToImage(text="a red circle", limits=limits, settings=settings))

    np.testing.assert_array_equal(make(4, 3)[2], make(6, 1)[0])


@pytest.mark.long
def test_a_text_to_image_run_refuses_to_edit_and_says_what_can(runs, limits):
    plain = generation.load_run(runs[0])
    with pytest.raises(ValueError, match="RemoveBackground needs an editing model"):
        generation.images.draw(plain, tasks.RemoveBackground(image=IMAGE, limits=limits))
    generation.images.draw(plain, tasks.TextToImage(text="a red circle", limits=limits, settings=asked()))


def make_batch(rows, seed=0):
    """Every kind of condition at once."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.standard_normal((rows, *shape), np.float32))

    cond = Conditioning(
        text_ids=jnp.asarray(rng.integers(3, 60, (rows, 24, 12))),
        text_mask=jnp.ones((rows, 24), bool),
        aligned=normal(1, 4, 4, 73),
        frames=normal(1, 4, 4, 4),
        frame_times=jnp.zeros((rows, 1)),
        palette=normal(3, 3),
        palette_mask=jnp.ones((rows, 3), bool),
        task=jnp.arange(rows) % 9,
    )
    return Batch(normal(1, 4, 4, 4), cond)


@pytest.mark.long
def test_editing_trains_on_a_mesh_like_on_one_device(trained):
    objective = FlowMatching(drop_rates=DropRates(aligned=0.2, frames=0.2, palette=0.2))

    def losses(mesh):
        made = build.plain(trained.network, objective, AdamW(peak=1e-2, warmup=0), make_batch(1), seed=0)
        state, found = step.build(made.make_state, *made.arguments, mesh=mesh), []
        for number in range(3):
            batch = make_batch(8, number)
            if mesh is not None:
                batch = distributed.global_batch(jax.tree.map(np.asarray, batch), meshes.batch_sharding(mesh), 8)
            state, metrics = made.train_step(state, batch)
            found.append(float(metrics["loss"]))
        return found

    expected = losses(None)
    mesh = meshes.MeshConfig(data=1, fsdp=4, tensor=2).make()
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(losses(mesh), expected, rtol=1e-5)


@pytest.mark.long
def test_dropped_conditions_receive_no_gradient(trained):
    x0, cond = make_batch(2)
    parts = ("aligned", "frames", "palette")

    def gradients(rate):
        objective = FlowMatching(drop_rates=DropRates(aligned=rate, frames=rate, palette=rate))

        def loss(given):
            batch = Batch(x0, cond._replace(**given))
            return objective(build.as_network(trained.network), trained.params, batch, jax.random.key(0))[0]

        return jax.jit(jax.grad(loss))({part: getattr(cond, part) for part in parts})

    dropped, kept = gradients(1.0), gradients(0.0)
    for part in parts:
        assert not np.any(dropped[part]), part
        assert np.any(kept[part]), part
