"""The editing model at 64 px on one GPU: eight shapes, up to six objects, a network six times as large.

    python -m experiments.canvas_64

The three stages of `experiments.canvas`: autoencoder, pretraining, editing. Processes draw the images and make the
batches, for a GPU learns from them faster than one interpreter makes them.

Measured: docs/canvas.md has the scores of a shorter training, with captions in groups of bytes, and what it took.
"""

import dataclasses
import functools

import jax.numpy as jnp

from data_pipelines import datasets
from data_pipelines.scenes import world
from data_pipelines.scenes.editing.source import CanvasPictures
from data_pipelines.sources.memory import InMemory
from experiments import canvas, image_vae
from nova_jax import experiment
from nova_jax.training import optimizer

VAE = dataclasses.replace(canvas.VAE, width=128, num_blocks=2)

PRETRAINING = dataclasses.replace(
    canvas.PRETRAINING,
    name="canvas_64_pretraining",
    model=canvas.make_model(width=256, depth=10, text_width=128, text_length=32, scan_unroll=1, dtype=jnp.bfloat16),
    data=canvas.SceneTasks(world=world.CANVAS_64, length=48_000, processes=8),
    optimizer=dataclasses.replace(canvas.PRETRAINING.optimizer, peak=4e-3, warmup=200),
    steps=2000,
    batch_size=256,
)

CONFIG = dataclasses.replace(
    canvas.CONFIG,
    name="canvas_64",
    model=canvas.grown(PRETRAINING.model),
    data=PRETRAINING.data,
    optimizer=dataclasses.replace(canvas.CONFIG.optimizer, peak=4e-3, warmup=200),
    steps=6000,
    batch_size=256,
    ema_decay=0.999,
)


def make_codec_config(data: canvas.SceneTasks, steps: int = 3000) -> experiment.TrainConfig:
    """The autoencoder, on images drawn once, for it learns from 17,000 a second."""
    images = InMemory(CanvasPictures(data.world, seed=1, length=100_000), data.processes or 1)
    vae = dataclasses.replace(VAE, dtype=jnp.bfloat16)
    config = image_vae.make_config(
        datasets.Pixels(source=images), name="canvas_vae", steps=steps, batch_size=256, kl=0.01, vae=vae
    )
    return dataclasses.replace(config, optimizer=optimizer.AdamW(peak=2e-3, warmup=200, b2=0.99, schedule="linear"))


prepare = functools.partial(canvas.prepare, pretraining=PRETRAINING, make_codec_config=make_codec_config)

if __name__ == "__main__":
    experiment.main(CONFIG, then=canvas.finish, prepare=prepare)
