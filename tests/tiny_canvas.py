"""The smallest editing run: pretraining, growth, batches of three shapes, nothing learnt."""

import dataclasses
import pathlib

import jax

from data_pipelines.scenes.editing.source import CanvasScenes
from experiments import canvas
from nova_jax import experiment, weights
from nova_jax.training import checkpoint
from tests import tiny_run

EDITS = {"aligned_channels": 2 * 4 + 64 + 1, "num_frame_roles": 1, "has_palette": True, "num_tasks": 9}


def train(folder) -> pathlib.Path:
    """The folder with `pretraining`, which stays as it was initialised, and `canvas`, for `once`."""
    pretraining, editing = make_configs(folder)
    first = experiment.run(dataclasses.replace(pretraining, steps=0))
    with checkpoint.Checkpoints(first.directory / "checkpoints", keep=1, metadata={}) as checkpoints:
        checkpoints.save(0, first.state, {})
    experiment.run(editing)
    return folder


def make_configs(folder) -> tuple[experiment.TrainConfig, experiment.TrainConfig]:
    """Pretraining on captions, and editing from there; an untrained autoencoder is written into the folder."""
    weights.save(tiny_run.TINY_VAE, jax.jit(tiny_run.TINY_VAE.init)(jax.random.key(0)), folder / "vae")
    first = tiny_run.make_config(folder)
    data = canvas.SceneTasks(length=16, codec_path=str(folder / "vae"), cache_path=str(folder / "cache"))
    text = canvas.text_data(data)
    pretraining = dataclasses.replace(first, data=text, run_dir=str(folder / "pretraining"))
    edits = dataclasses.replace(
        text,
        sources=tuple(CanvasScenes(data.world, task, length=8) for task in canvas.EDITING),
        is_aligned=True,
    )
    colors = dataclasses.replace(
        text, sources=(CanvasScenes(data.world, "colors", length=8),), num_frames=1, has_palette=True
    )
    mixture = canvas.Mixture(parts=((text, 1), (edits, 2), (colors, 1)))
    editing = dataclasses.replace(
        pretraining,
        name="tiny_canvas",
        model=dataclasses.replace(first.model, dit=dataclasses.replace(first.model.dit, **EDITS)),
        data=mixture,
        steps=4,
        run_dir=str(folder / "canvas"),
        start_from=str(folder / "pretraining"),
    )
    return pretraining, editing
