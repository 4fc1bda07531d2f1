"""The smallest video run: clips, images and films through an untrained causal autoencoder, nothing learnt."""

import dataclasses

import jax

from data_pipelines import mixture
from data_pipelines.scenes.video import source as video_source
from data_pipelines.scenes.video import world as video_world
from nova_jax import experiment, weights
from nova_jax.diffusion import DropRates, FlowMatching, GivenFrames
from nova_jax.models.vae import VAE
from tests import tiny_run

WORLD = dataclasses.replace(video_world.REEL_36, height=32, width=32, frames=9)
SHAPE = (3, 4, 4, 4)  # of a clip's latents
TINY_VAE = VAE(
    latent_channels=4, width=8, width_multipliers=(1, 1, 1), halves_time=(True, True), num_blocks=1, patch_size=2
)


def make_data(folder):
    """Three parts; the autoencoder is written into the folder."""
    weights.save(TINY_VAE, jax.jit(TINY_VAE.init)(jax.random.key(0)), folder / "vae")
    sources = {f"{task}s": video_source.Reels(world=WORLD, task=task, length=4) for task in ("video", "image", "film")}
    return mixture.of_videos(
        **sources,
        weights=(1, 1, 1),
        image_rows=3.0,
        codec_path=str(folder / "vae"),
        text_encoder=tiny_run.ENCODER,
        cache_path=str(folder / "cache"),
    )


def make_config(folder) -> experiment.TrainConfig:
    """A run over all parts; one step of each."""
    first = tiny_run.make_config(folder)
    dit = dataclasses.replace(first.model.dit, num_frame_roles=1)
    return dataclasses.replace(
        first,
        name="tiny_reel",
        model=dataclasses.replace(first.model, dit=dit),
        objective=FlowMatching(given=GivenFrames(), drop_rates=DropRates(frames=0.1)),
        data=make_data(folder),
        steps=3,
        checkpoint_every=3,
        preview=None,
    )
