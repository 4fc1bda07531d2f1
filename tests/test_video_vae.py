"""The autoencoder of clips, smallest: images, then clips, then the codec folder."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from data_pipelines import autoencoders, datasets
from data_pipelines.scenes.video.source import Reels
from data_pipelines.scenes.video.world import ReelWorld
from experiments import video_vae
from nova_jax import config as configs
from nova_jax import experiment, weights
from nova_jax.models import inflation, presets
from nova_jax.models import vae as vaes
from nova_jax.runs import build, train
from nova_jax.types import Batch

SMALL = vaes.VAE(
    latent_channels=3,
    width=4,
    width_multipliers=(1, 1),
    halves_time=(True,),
    num_blocks=1,
    patch_size=2,
    has_attention=False,
)
REELS = Reels(ReelWorld(height=32, width=32, frames=5), seed=1, length=40)
CLIPS = datasets.Pixels(source=REELS, size=(8, 8))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> experiment.TrainConfig:
    config = video_vae.make_video_config(CLIPS, name="video_vae", steps=4, batch_size=8, vae=SMALL)
    folder = tmp_path_factory.mktemp("video_vae")
    return video_vae.prepare(dataclasses.replace(config, run_dir=str(folder / "run"), log_every=1))


@pytest.mark.slow
def test_the_second_stage_starts_from_the_pictures_of_the_first(prepared):
    video = build.trained_params(prepared.model, prepared.start_from)
    image = build.trained_params(inflation.without_time(SMALL), prepared.start_from)
    kernel = video["decoder"]["conv_out"]["kernel"]
    np.testing.assert_array_equal(kernel[-1], image["decoder"]["conv_out"]["kernel"][0])
    assert not kernel[:-1].any()


@pytest.mark.slow
def test_both_stages_end_in_a_codec_that_says_how_good_it_is(prepared):
    result = experiment.run(prepared)
    clips = prepared.data.parts[0][0].source
    folder = autoencoders.export(prepared, result, autoencoders.under_another_seed(clips), samples=4, batch_size=2)
    card = json.loads((folder / "card.json").read_text())
    assert card["held_out"] == 4
    assert np.isfinite(card["psnr_db"])
    assert card["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(result.state.params))
    codec, _ = weights.load(folder)
    assert dataclasses.replace(codec, latents_mean=(), latents_std=()) == SMALL
    assert len(codec.latents_std) == 3


@pytest.mark.slow
def test_an_autoencoder_that_differs_in_more_than_time_does_not_start_from_a_run(prepared):
    with pytest.raises(ValueError, match="width is 4 in the first and 16 in the second"):
        build.trained_params(dataclasses.replace(SMALL, width=16), prepared.start_from)


def test_an_autoencoder_starts_from_no_other_network(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        build.trained_params(SMALL, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"config": {"model": configs.to_dict(presets.dit("nano"))}}))
    with pytest.raises(ValueError, match="trained a DiT, from which an autoencoder cannot start"):
        build.trained_params(SMALL, tmp_path)


def test_the_first_stage_trains_the_same_network_without_time_on_pictures():
    config = configs.override(video_vae.CONFIG, ["model.dtype=bfloat16", "run_dir=runs/other", "steps=500"])
    first = video_vae.first_stage(config)
    assert inflation.without_time(config.model) == first.model
    assert first.model.dtype == config.model.dtype
    assert (first.run_dir, first.steps) == ("runs/other_images", 1833)
    assert first.data.source.source.task == "image"
    assert config.data.parts[0][0].source.source.task == "video"


@pytest.mark.slow
def test_a_training_step_of_the_default_stays_below_its_budget_per_clip():
    """0.04 TFLOP for 25 frames of 36 x 64 pixels, by XLA's count."""
    example = Batch(np.zeros((1, 25, 36, 64, 3), np.float32))
    config = dataclasses.replace(video_vae.CONFIG, batch_size=1)
    assert 0.02e12 < train.flops_per_step(config, [(1.0, example)]) < 0.04e12


def test_clips_to_measure_on_are_of_another_seed():
    assert autoencoders.under_another_seed(video_vae.CLIPS) == dataclasses.replace(video_vae.CLIPS.source, seed=1001)
    assert autoencoders.under_another_seed(CLIPS.source).seed == 1001


def test_repeated_frames_are_the_last_of_each_group():
    clips = np.arange(9, dtype=np.uint8).reshape(1, 9, 1, 1, 1)
    assert autoencoders.repeated(clips, 4)[0, :, 0, 0, 0].tolist() == [0, 4, 4, 4, 4, 8, 8, 8, 8]
