"""The small autoencoder of clips: 4 x 4 x 4 pixels per latent, 16 channels, 3.2 M parameters, in two stages.

    python -m experiments.video_vae                                             images first, then clips
    python -m experiments.video_vae steps=20000 batch_size=32 model.dtype=bfloat16
    python -m experiments.video_vae model.patch_size=2 "model.halves_space=(True, False)"      `vae.small_video()`
    python -m experiments.video_vae --images                                    the first stage alone
    python -m experiments.video_vae start_from=runs/video_vae_images            the second stage alone

An image costs 1/40 of a clip, and teaches most of what there is to learn. The second stage gives the trained network
time (`models.inflation`): it begins by repeating images, and learns from clips, with a batch of images between
them, to say how they move. For each of its steps the first stage takes 11 / 3, with eight times as many rows.

Ends with `codec/` in the run folder, as `image_vae` does: config.json with the latents' mean and deviation, the weights
as float16, and card.json with how they were made and the PSNR of held-out clips.
"""

import dataclasses
import sys
from typing import Any

from data_pipelines import autoencoders, datasets
from data_pipelines.mixture import Mixture
from data_pipelines.scenes.video.source import Reels
from data_pipelines.sources.frames import Frames
from data_pipelines.sources.memory import InMemory
from nova_jax import experiment
from nova_jax.diffusion import reconstruction
from nova_jax.models import inflation
from nova_jax.models import vae as vaes
from nova_jax.models.vae import VAE
from nova_jax.training import optimizer

VIDEO = vaes.tiny_video()
IMAGE = inflation.without_time(VIDEO)
IMAGE_STEPS, CLIP_STEPS, KL = 1100, 300, 0.01  # what two CPU cores do in 40 minutes
# Held in memory: 0.7 and 0.2 GB. Drawing a clip takes 33 ms of one processor, an image 4 ms.
CLIPS = InMemory(Reels(task="video", seed=1, length=4_000), processes=None)
PICTURES = InMemory(Reels(task="image", seed=1, length=30_000), processes=None)


def make_image_config(
    images: datasets.Pixels,
    *,
    name: str,
    steps: int = IMAGE_STEPS,
    batch_size: int = 64,
    kl: float = KL,
    vae: VAE = IMAGE,
) -> experiment.TrainConfig:
    """The first stage: single images, with an autoencoder that knows no time."""
    return experiment.TrainConfig(
        name=name,
        model=vae,
        objective=reconstruction.Reconstruction(l2=2.0, ssim=0.0, levels=2, kl=kl),
        data=images,
        optimizer=_optimizer(2.5e-3),
        steps=steps,
        batch_size=batch_size,
        ema_decay=0.995,
        checkpoint_every=1000,
        keep=1,
    )


def make_video_config(
    clips: datasets.Pixels,
    images: datasets.Pixels | None = None,
    *,
    name: str,
    steps: int,
    batch_size: int = 8,
    kl: float = KL,
    vae: VAE = VIDEO,
) -> experiment.TrainConfig:
    """The second stage; give it `start_from`, or let `prepare` train the first one.

    Args:
        clips: of 1 + n t frames for t frames per latent.
        images: every fourth batch is of these; None: a frame of each clip.
        name: of the run.
        steps: batches of either kind.
        batch_size: clips, or images.
        kl: weight of the divergence, as in the first stage.
        vae: causal.
    """
    images = images or dataclasses.replace(clips, source=Frames(clips.source))
    return experiment.TrainConfig(
        name=name,
        model=vae,
        objective=reconstruction.Reconstruction(l2=2.0, ssim=0.0, motion=1.0, levels=2, kl=kl),
        data=Mixture(parts=((clips, 3), (images, 1))),
        optimizer=_optimizer(3e-4),
        steps=steps,
        batch_size=batch_size,
        ema_decay=0.998,
        checkpoint_every=1000,
        keep=1,
    )


def _optimizer(peak: float) -> optimizer.Optimizer:
    return optimizer.AdamW(peak=peak, warmup=200, b2=0.99, schedule="cosine")


CONFIG = make_video_config(
    datasets.Pixels(source=CLIPS), datasets.Pixels(source=PICTURES), name="video_vae", steps=CLIP_STEPS
)


def first_stage(config: experiment.TrainConfig) -> experiment.TrainConfig:
    """The run on images that a run on clips starts from: its images, its loss, its mesh, its dtype."""
    _, (images, _) = config.data.parts
    first = make_image_config(
        images,
        name=f"{config.name}_images",
        steps=round(config.steps * IMAGE_STEPS / CLIP_STEPS),
        batch_size=8 * config.batch_size,
        kl=config.objective.kl,
        vae=inflation.without_time(config.model),
    )
    shared = {name: getattr(config, name) for name in ("mesh", "seed", "log_every")}
    return dataclasses.replace(first, run_dir=f"{config.directory}_images", **shared)


def prepare(config: experiment.TrainConfig) -> experiment.TrainConfig:
    """Trains the first stage, unless the config says what to start from."""
    if config.start_from:
        return config
    return dataclasses.replace(config, start_from=str(experiment.run(first_stage(config)).directory))


def train(config: experiment.TrainConfig, held_out: Any) -> str:
    """Runs both stages and exports the second; returns its folder. Does nothing twice."""
    return autoencoders.train(prepare(config), held_out)


def finish(config: experiment.TrainConfig, result: experiment.Result) -> None:
    """Exports the autoencoder, measured on clips of another seed."""
    autoencoders.export(config, result, autoencoders.under_another_seed(config.data.parts[0][0].source))


if __name__ == "__main__":
    if "--images" in sys.argv:
        sys.argv.remove("--images")
        experiment.main(first_stage(CONFIG))
    else:
        experiment.main(CONFIG, then=finish, prepare=prepare)
