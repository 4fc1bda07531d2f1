"""The editing model at 64 px on one GPU: eight shapes, up to six objects, a network six times as large.

    python -m experiments.canvas_64

The three stages of `experiments.canvas`: autoencoder, pretraining, editing. Processes draw the pictures and make the
batches, for a GPU learns from them faster than one interpreter makes them.
"""

import dataclasses
import functools

import jax.numpy as jnp

from data_pipelines.scenes import world
from experiments import canvas
from nova_jax import experiment
from nova_jax.training import optimizer

VAE = dataclasses.replace(canvas.VAE, width=128, num_blocks=2)

PRETRAINING = dataclasses.replace(
    canvas.PRETRAINING,
    name="canvas_64_pretraining",
    model=canvas.make_model(width=256, depth=10, text_width=128, scan_unroll=1, dtype=jnp.bfloat16),
    data=canvas.SceneTasks(world=world.CANVAS_64, length=48_000, processes=8),
    optimizer=optimizer.Muon(peak=4e-3, warmup=200, b2=0.99, schedule="constant"),
    steps=2000,
    batch_size=256,
)

CONFIG = dataclasses.replace(
    canvas.CONFIG,
    name="canvas_64",
    model=canvas.grown(PRETRAINING.model),
    data=PRETRAINING.data,
    optimizer=optimizer.Muon(peak=4e-3, warmup=200, b2=0.99, schedule="linear", total_steps=6000),
    steps=6000,
    batch_size=256,
    ema_decay=0.999,
)

prepare = functools.partial(canvas.prepare, pretraining=PRETRAINING, vae=VAE, codec_steps=8000)

if __name__ == "__main__":
    experiment.main(CONFIG, then=canvas.finish, prepare=prepare)
