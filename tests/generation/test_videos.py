"""A video model from clips, images and films to requests: given latents stay, shots follow on, streams agree."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import experiment, generation, tasks
from nova_jax.diffusion import DropRates, FlowMatching, GivenFrames, TimeNoise
from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import build
from nova_jax.training import step
from nova_jax.training.optimizer import AdamW
from nova_jax.types import Batch, Conditioning
from tests import tiny_reel

SETTINGS = generation.SamplingSettings(sampler="euler", num_steps=3, guidance_scale=2.0)
PICTURE, OTHER = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return experiment.run(tiny_reel.make_config(tmp_path_factory.mktemp("reel"))).directory


@pytest.fixture(scope="module")
def trained(run):
    """The run away from its start, where many weights are zero."""
    loaded, rng = generation.load_run(run), np.random.default_rng(0)
    return loaded._replace(
        params=jax.tree.map(lambda a: a + 0.2 * rng.standard_normal(a.shape, np.float32), loaded.params)
    )


@pytest.fixture(scope="module")
def limits(trained):
    return generation.videos.limits_of(trained)


@pytest.fixture(scope="module")
def film(limits):
    shots = [tasks.ShotRequest("a red circle moves left"), tasks.ShotRequest("it stops", PICTURE)]
    return tasks.MultiShotManual(shots=shots, seed=4, limits=limits)


@pytest.mark.long
def test_every_part_takes_a_step_and_counts_its_own_rows(run):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    record = json.loads((run / "config.json").read_text())
    assert record["data"]["latent_shape"] == list(tiny_reel.SHAPE)
    assert record["samples_per_step"] == round((8 + 24 + 8) / 3)


@pytest.mark.long
def test_the_limits_are_the_size_that_was_trained(limits):
    assert (limits.size, limits.frames, limits.frames_kept) == ((32, 32), 9, 9)


@pytest.mark.long
def test_given_latents_come_out_as_they_went_in(trained):
    known = np.random.default_rng(1).standard_normal((2, *tiny_reel.SHAPE), np.float32)
    mask = np.array([[True, False, False], [True, False, True]])
    settings = dataclasses.replace(SETTINGS, start=0.9, given_noise=0.2)
    for how in (SETTINGS, settings):
        drawn = generation.generate_latents(trained, ["a", "b"], [0, 1], how, given=(known, mask))
        np.testing.assert_array_equal(drawn[mask], known[mask])
    free = generation.generate_latents(trained, ["a", "b"], [0, 1], SETTINGS)
    assert (drawn[~mask] != free[~mask]).any()


@pytest.mark.long
def test_requests_are_drawn_the_same_alone_and_among_others(trained, limits, film):
    text = tasks.TextToVideo(text="a red circle moves left", seed=4, limits=limits)
    started = tasks.TextToVideo(text="a red circle moves left", image=PICTURE, seed=4, limits=limits)
    together = generation.videos.draw_all(trained, [text, started, film], SETTINGS)
    assert [clips.shape for clips in together] == [(1, 9, 32, 32, 3), (1, 9, 32, 32, 3), (2, 9, 32, 32, 3)]
    np.testing.assert_array_equal(generation.videos.draw(trained, started, SETTINGS), together[1])
    np.testing.assert_array_equal(together[2][0], together[0][0])  # the first shot of a film is a clip like any other
    assert (together[0] != together[1]).any()


@pytest.mark.long
def test_a_shot_is_shown_the_shots_before_it_unless_it_stands_alone(trained, limits, film):
    [together], [apart] = (generation.videos.draw_all(trained, [film], SETTINGS, references=n) for n in (3, 0))
    alone = generation.videos.draw(
        trained, tasks.TextToVideo(text="it stops", image=PICTURE, seed=5, limits=limits), SETTINGS
    )
    np.testing.assert_array_equal(apart[1], alone[0])
    assert (together[1] != apart[1]).any()


@pytest.mark.long
def test_a_stream_brings_the_same_frames_a_few_at_a_time(trained, film):
    chunks = list(generation.videos.draw_stream(trained, film, SETTINGS))
    assert [len(chunk) for chunk in chunks] == [1, 4, 4, 1, 4, 4]
    whole = np.concatenate(list(generation.videos.draw(trained, film, SETTINGS)))
    assert np.abs(np.concatenate(chunks).astype(int) - whole).max() <= 1


@pytest.mark.long
def test_a_clip_between_two_pictures_depends_on_both(trained):
    clip = generation.videos.interpolate(trained, "a circle", PICTURE, OTHER, settings=SETTINGS)
    assert clip.shape == (9, 32, 32, 3)
    for pair in ((OTHER, OTHER), (PICTURE, PICTURE)):
        assert (generation.videos.interpolate(trained, "a circle", *pair, settings=SETTINGS) != clip).any()


@pytest.mark.long
def test_an_extended_clip_begins_with_itself(trained):
    clip = np.stack([PICTURE] * 3 + [OTHER] * 6)
    longer = generation.videos.extend(trained, "a circle", clip, settings=SETTINGS)
    np.testing.assert_array_equal(longer[:9], clip)
    assert len(longer) == 9 + 8
    assert len(generation.videos.extend(trained, "a circle", clip, settings=SETTINGS, kept=2)) == 9 + 4
    with pytest.raises(ValueError, match="kept=3 latent frames"):
        generation.videos.extend(trained, "a circle", clip, kept=3)


@pytest.mark.long
def test_what_a_run_has_not_learnt_is_refused(trained, limits, film):
    plain = trained._replace(objective=FlowMatching())
    with pytest.raises(ValueError, match="never been given frames"):
        generation.videos.draw(plain, tasks.TextToVideo(text="a", image=PICTURE, limits=limits))
    dit = dataclasses.replace(trained.network.dit, num_frame_roles=0)
    unread = trained._replace(network=dataclasses.replace(trained.network, dit=dit))
    with pytest.raises(ValueError, match="references=0"):
        generation.videos.draw(unread, film)
    with pytest.raises(ValueError, match="0 to 3 earlier ones"):
        generation.videos.check(trained, film, references=4)


def test_clips_are_drawn_as_many_at_a_time_as_fit():
    assert generation.rows_per_call((1, 64, 64, 16)) == 16
    assert generation.rows_per_call((7, 9, 16, 16)) == 4
    assert generation.rows_per_call((37, 90, 160, 16)) == 1


def make_batch(rows, seed=0):
    """Shots of films."""
    rng = np.random.default_rng(seed)
    frames = rng.standard_normal((rows, 3, *tiny_reel.SHAPE[1:]), np.float32)
    shown = {"frames": frames, "frame_times": np.zeros((rows, 3), np.float32)}
    cond = Conditioning(text_ids=rng.integers(3, 60, (rows, 24, 12)), text_mask=np.ones((rows, 24), bool), **shown)
    return Batch(rng.standard_normal((rows, *tiny_reel.SHAPE), np.float32), cond)


@pytest.mark.long
def test_given_frames_train_on_a_mesh_like_on_one_device(trained):
    given = GivenFrames(first=0.3, ends=0.3, prefix=0.3, guard=TimeNoise())
    objective = FlowMatching(given=given, drop_rates=DropRates(frames=0.3))

    def losses(mesh):
        example = jax.tree.map(jnp.asarray, make_batch(1))
        made = build.plain(trained.network, objective, AdamW(peak=1e-2, warmup=0), example, seed=0)
        state, found = step.build(made.make_state, *made.arguments, mesh=mesh), []
        for number in range(2):
            batch = make_batch(8, number)
            if mesh is not None:
                batch = distributed.global_batch(batch, meshes.batch_sharding(mesh), 8)
            state, metrics = made.train_step(state, batch)
            found.append(float(metrics["loss"]))
        return found

    expected = losses(None)
    mesh = meshes.MeshConfig(data=1, fsdp=4, tensor=2).make()
    with jax.set_mesh(mesh):
        np.testing.assert_allclose(losses(mesh), expected, rtol=1e-5)
