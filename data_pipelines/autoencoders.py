"""Autoencoders of one's own: trained on the images or clips that a run needs, measured, and kept as a codec folder.

`codec/` in the run folder has config.json with the latents' mean and deviation, the weights as float16, and card.json
with how they were made and what they reach on data that was held out.
"""

import dataclasses
import itertools
import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from data_pipelines import images, loader
from data_pipelines.mixture import Mixture
from data_pipelines.sources import base
from data_pipelines.sources.memory import InMemory
from nova_jax import environment, experiment, generation, weights
from nova_jax.diffusion import reconstruction
from nova_jax.evaluation import image_metrics
from nova_jax.models.vae import VAE
from nova_jax.parallel import distributed
from nova_jax.runs import record

Clips = UInt8[np.ndarray, "n f h w 3"]


def train(config: experiment.TrainConfig, held_out: Any) -> str:
    """Runs an autoencoder's experiment and exports it; returns its folder. Does nothing twice."""
    result = experiment.run(config)
    folder = result.directory / generation.CODEC_FOLDER
    if not distributed.agree(int((folder / "card.json").is_file())):
        export(config, result, held_out)
    return str(folder)


def with_codec(
    config: experiment.TrainConfig,
    make_config: Callable[..., experiment.TrainConfig],
    source: Any = None,
    held_out: Any = None,
) -> experiment.TrainConfig:
    """A run on latents whose autoencoder is trained first, into RUN_vae, unless `data.codec_path` names one.

    Args:
        config: of the run.
        make_config: (pixels, name=) -> config of the autoencoder.
        source: images that the autoencoder learns from; None: those of the run.
        held_out: images to measure the autoencoder on; None: those it was trained on.
    """
    data = config.data
    if data.codec_path:
        return config
    source = source or data.source
    codec_config = make_config(data.pixels_of(source), name=f"{config.name}_vae")
    folder = train(dataclasses.replace(codec_config, run_dir=f"{config.directory}_vae"), held_out or source)
    return dataclasses.replace(config, data=dataclasses.replace(data, codec_path=folder))


def export(
    config: experiment.TrainConfig,
    result: experiment.Result,
    held_out: Any,
    samples: int | None = None,
    batch_size: int | None = None,
) -> pathlib.Path:
    """Measures the latents, writes the run's `codec/` folder, and says what it reaches on held-out data.

    The codec computes in float32, whatever it was trained in. Of several processes, which all call it, the main one
    does this alone.

    Args:
        config: of the run, on pixels; of a mixture the first part counts.
        result: of the run.
        held_out: a source of the same kind that was not trained on.
        samples: to measure latents on (training data) and reconstructions (held out); None: 2,000 images, 200 clips.
        batch_size: at a time; None: 100 images, 10 clips.
    """
    ema, folder = distributed.whole(result.state.ema), result.directory / generation.CODEC_FOLDER
    if distributed.is_main():
        result = result._replace(state=result.state._replace(ema=ema))
        _export(config, result, held_out, folder, samples, batch_size)
    distributed.barrier("nova_jax codec")
    return folder


def _export(
    config: experiment.TrainConfig,
    result: experiment.Result,
    held_out: Any,
    folder: pathlib.Path,
    samples: int | None,
    batch_size: int | None,
) -> None:
    data = config.data.parts[0][0] if isinstance(config.data, Mixture) else config.data
    vae = dataclasses.replace(config.model, dtype=jnp.float32)
    samples, batch_size = samples or (200 if vae.is_temporal else 2000), batch_size or (10 if vae.is_temporal else 100)
    batches = itertools.islice(data.batches(0, batch_size), max(1, samples // batch_size))
    pixels = (jnp.asarray(batch.x0) for batch in batches)
    mean, std = reconstruction.latent_statistics(vae, result.state.ema, pixels)
    weights.save(
        dataclasses.replace(vae, latents_mean=mean, latents_std=std), result.state.ema, folder, dtype="float16"
    )
    vae, params = weights.load(folder)  # what is measured is what was written
    fit, rng = images.Transform(size=data.size), np.random.default_rng(0)
    shown = loader.readable(held_out, range(min(samples, len(held_out))), data.max_corrupt)
    truth = np.asarray(generation.to_uint8(jnp.asarray([fit(sample, rng)["pixels"] for sample in shown])))
    card = {
        "command": f"python -m experiments.{config.name} {' '.join(sys.argv[1:])}".strip(),
        "data": repr(data.source),
        "steps": int(result.state.step),
        "batch_size": config.batch_size,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "training_seconds": record.training_seconds(result.directory),
        **measure(vae, params, truth, held_out, batch_size),
        "environment": environment.describe(),
    }
    (folder / "card.json").write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps({key: value for key, value in card.items() if key != "environment"}, indent=1))


def measure(vae: VAE, params: Any, truth: Clips, held_out: Any, batch_size: int = 100) -> dict[str, Any]:
    """PSNR of reconstructions in dB, beside what a video would reach by repeating frames, and what is read in them."""
    rebuilt = reconstruct(vae, params, truth, batch_size)
    found: dict[str, Any] = {"held_out": len(truth), "psnr_db": round(image_metrics.psnr(truth, rebuilt), 2)}
    if vae.is_temporal:
        still = reconstruct(vae, params, truth[:, -1:], batch_size)
        found["psnr_db_of_images"] = round(image_metrics.psnr(truth[:, -1:], still), 2)
        again = repeated(truth, vae.compression[0])
        found["psnr_db_of_repeated_frames"] = round(image_metrics.psnr(truth, again), 2)
    read_back = base.examinable(held_out).read_back
    if (of_truth := read_back(truth)) is not None:
        found["parser_on_ground_truth"] = dataclasses.asdict(of_truth)
        found["parser_on_reconstructions"] = dataclasses.asdict(read_back(rebuilt))
    return found


def reconstruct(vae: VAE, params: Any, pixels: Clips, batch_size: int = 100) -> Clips:
    """Images or clips through the autoencoder and back."""
    through = jax.jit(lambda params, x: generation.to_uint8(vae.decode(params, vae.encode(params, x / 127.5 - 1.0)[0])))
    pad = -len(pixels) % batch_size
    padded = np.concatenate([pixels, pixels[:1].repeat(pad, axis=0)]).astype(np.float32)
    rebuilt = [np.asarray(through(params, padded[i : i + batch_size])) for i in range(0, len(padded), batch_size)]
    return np.concatenate(rebuilt)[: len(pixels)]


def repeated(clips: np.ndarray, time: int) -> np.ndarray:
    """Clips (n, 1 + k t, h, w, 3) in which the last frame of every group stands for all: what inflation begins with."""
    return np.concatenate([clips[:, :1], clips[:, time::time].repeat(time, axis=1)], axis=1)


def under_another_seed(source: Any) -> Any:
    """The same generated source, or the one that is held in memory, under another seed."""
    source = source.source if isinstance(source, InMemory) else source
    return dataclasses.replace(source, seed=source.seed + 1000)
