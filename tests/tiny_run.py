"""The smallest run from scenes to images: seconds to train, nothing learnt."""

import dataclasses
import pathlib

import jax

from data_pipelines import datasets
from data_pipelines.scenes import source
from nova_jax import distillation, experiment, weights
from nova_jax.diffusion import FlowMatching
from nova_jax.models.dit import DiT
from nova_jax.models.text import WordTextEncoder
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.models.vae import VAE
from nova_jax.training.optimizer import AdamW

TINY_VAE = VAE(
    latent_channels=4,
    width=8,
    width_multipliers=(1, 1),
    halves_time=(False,),
    num_blocks=1,
    patch_size=4,
    is_temporal=False,
    has_attention=False,
)

ENCODER = WordTextEncoder(width=8, depth=1, num_heads=2, length=24)


def train(folder) -> pathlib.Path:
    """The finished run, for `once`: tests leave it as it is, or copy it."""
    return experiment.run(make_config(folder)).directory


def make_config(folder) -> experiment.TrainConfig:
    """The run's config; its autoencoder, untrained, is written into the folder."""
    weights.save(TINY_VAE, jax.jit(TINY_VAE.init)(jax.random.key(0)), folder / "vae")
    return config_in(folder)


def config_in(folder) -> experiment.TrainConfig:
    """The same, of a folder that holds the autoencoder."""
    return experiment.TrainConfig(
        name="tiny",
        model=TextToLatent(
            dit=DiT(width=16, depth=1, num_heads=2, in_channels=4, patch_size=(1, 1, 1), text_dim=8),
            text_encoder=ENCODER,
        ),
        objective=FlowMatching(),
        data=datasets.CaptionedLatents(
            source=source.Scenes(length=32), codec_path=str(folder / "vae"), cache_path=str(folder / "cache")
        ),
        optimizer=AdamW(peak=1e-3, warmup=2),
        steps=4,
        batch_size=8,
        log_every=1,
        checkpoint_every=2,
        preview=experiment.Preview(every=4, prompts=("a red circle",)),
        run_dir=str(folder / "run"),
    )


def make_student_config(teacher: pathlib.Path, run_dir: pathlib.Path, **changes) -> experiment.TrainConfig:
    """A student of the trained tiny run, which lies beside its autoencoder."""
    config = config_in(teacher.parent)
    student = dataclasses.replace(config.model, dit=dataclasses.replace(config.model.dit, has_second_time=True))
    return dataclasses.replace(
        config,
        name="tiny_student",
        model=student,
        objective=distillation.Shortcut(max_steps=8),
        preview=None,
        run_dir=str(run_dir),
        teacher=str(teacher),
        **changes,
    )
