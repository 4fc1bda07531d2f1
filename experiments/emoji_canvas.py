"""Background removal and colour guidance, learnt from any tar of cut-outs: an autoencoder, then one run for all tasks.

    python -m experiments.emoji_canvas data.source.paths=/data/emoji.tar
    python -m experiments.emoji_canvas data.source.paths=/data/emoji.tar steps=20000

The tar holds `KEY.png` (or .webp) with alpha and `KEY.txt`; it is read in place. A mixture of text to image, mattes
and palettes (`data_pipelines.sources.cutouts`) is learnt from nothing, without a stage before it but the autoencoder's,
which goes into `RUN_vae` and is found there when the command runs again.

At the end the run folder has scores.json and tasks.png, both of held-out images. Each score stands between its
ceiling, that of the true answers through the autoencoder, and chance, that of answers to other images:

    matte     mean absolute error of alpha, of 1
    colors    mean CIEDE2000 distance of each asked colour to the nearest area of the image; `truth` is what the
              measure says of the true images themselves

Measured with captions in groups of bytes, before words, on 1,870 emoji, 5,000 steps, one of two CPU cores: 25 minutes
for the autoencoder (24.0 dB), 65 for the model; matte 0.137 (ceiling 0.019, chance 0.299), colors 6.0 (3.8, 21.7).
"""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from data_pipelines import autoencoders, datasets, encoding, images, loader
from data_pipelines.conditioned import ConditionedLatents
from data_pipelines.mixture import Mixture
from data_pipelines.sources import InMemory, WebDataset, cutouts
from data_pipelines.sources.cutouts import CutoutImages, Cutouts
from experiments import canvas, image_vae
from nova_jax import experiment, generation, tasks
from nova_jax.diffusion import DropRates, FlowMatching
from nova_jax.evaluation import image_metrics, intervals, task_report
from nova_jax.tasks import color

STEPS = 8000
PROMPTS = ("grinning face", "red heart", "pizza", "dog face", "sun", "evergreen tree", "red apple", "soccer ball")
CFG_SCALE = 2.0  # guidance of palettes
MAX_SCORED = 200  # held-out elements of each task
SHOWN = 24  # of each task in tasks.png
ACROSS = 4  # of them side by side

RGBImage = UInt8[np.ndarray, "h w 3"]
Scores = dict[str, dict[str, float]]  # whose answers -> {value, low, high, n}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutoutTar:
    """What can be chosen of the data; `prepare` makes the mixture of it.

    Attributes:
        source: captioned images with alpha.
        size: (h, w) that images are fitted into.
        codec_path: folder of an autoencoder; "" trains one.
        max_corrupt: unreadable elements left out, for every 4,096. One image that cannot be read is part of many.
    """

    source: WebDataset
    size: tuple[int, int] = (32, 32)
    codec_path: str = ""
    max_corrupt: int = 8


CONFIG = experiment.TrainConfig(
    name="emoji_canvas",
    model=canvas.grown(canvas.make_model(text_length=16)),
    objective=FlowMatching(drop_rates=DropRates(aligned=0.05, frames=0.05, palette=0.1)),
    data=CutoutTar(source=WebDataset("emoji.tar", decoder=images.WITH_ALPHA)),
    optimizer=canvas.CONFIG.optimizer,
    steps=STEPS,
    batch_size=64,
    ema_decay=0.998,
    preview=experiment.Preview(every=1000, prompts=PROMPTS),
)


def prepare(config: experiment.TrainConfig) -> experiment.TrainConfig:
    """Trains the autoencoder unless one is given, and makes the mixture."""
    codec_path = config.data.codec_path or train_codec(config.data, f"{config.directory}_vae")
    return dataclasses.replace(config, data=make_mixture(config.data, codec_path))


def make_mixture(data: CutoutTar, codec_path: str) -> Mixture:
    """Of 10 batches 3 hold captions alone, 3 mattes and 4 palettes."""

    def of_task(task: str, **inputs: Any) -> ConditionedLatents:
        source = Cutouts(data.source, task, data.size)
        return ConditionedLatents(sources=(source,), codec_path=codec_path, max_corrupt=data.max_corrupt, **inputs)

    return Mixture(
        parts=(
            (of_task("generate"), 3),
            (of_task("matte", is_aligned=True), 3),
            (of_task("colors", num_frames=1, has_palette=True), 4),
        )
    )


def train_codec(data: CutoutTar, run_dir: str, steps: int = 4000) -> str:
    """The autoencoder of all images that the tasks show or ask for; returns its folder."""
    shown = CutoutImages(data.source, data.size, seed=1)
    limit = encoding.max_corrupt_of_all(shown, data.max_corrupt)
    pixels = datasets.Pixels(source=InMemory(shown), max_corrupt=limit)
    config = image_vae.make_config(pixels, name="emoji_canvas_vae", steps=steps, kl=0.005, vae=canvas.VAE)
    held_out = CutoutImages(data.source, data.size, seed=1, held_out=True)
    return autoencoders.train(dataclasses.replace(config, run_dir=run_dir), held_out)


def finish(config: experiment.TrainConfig, result: experiment.Result) -> None:
    """Scores the run on held-out images: scores.json, tasks.png, and the numbers on the terminal."""
    trained = generation.load_run(result.directory)
    part = config.data.parts[0][0]
    scores, sheet = evaluate(trained, part.sources[0], max_corrupt=part.max_corrupt)
    (result.directory / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    path = generation.save_grid(result.directory / "tasks.png", sheet, columns=3 * ACROSS, upscale=2)
    print_scores(scores)
    print(f"\nimages: {path}")


def evaluate(
    trained: generation.TrainedRun, learnt: Cutouts, count: int = MAX_SCORED, *, max_corrupt: int = 8
) -> tuple[dict[str, Scores], UInt8[np.ndarray, "n 1 h w 3"]]:
    """Scores of both tasks, and the first answers, three tiles each.

    Args:
        trained: the run.
        learnt: the source of any of its tasks.
        count: at most so many held-out elements of each task, one of each image.
        max_corrupt: so many of them may be unreadable; they are left out.
    """
    scores, tiles = {}, []
    for task, score in (("matte", score_mattes), ("colors", score_colors)):
        elements = Cutouts(learnt.source, task, learnt.size, seed=1, held_out=True)
        shown = list(loader.readable(elements, range(min(count, elements.num_images)), max_corrupt))
        scores[task], strips = score(trained, shown)
        tiles += strips[: SHOWN - SHOWN % ACROSS]
    return scores, np.concatenate(tiles)[:, None]


def score_mattes(trained: generation.TrainedRun, elements: Sequence[cutouts.Sample]) -> tuple[Scores, list[np.ndarray]]:
    """Errors of alpha; and of each element source, true alpha and the drawn cut-out on a checkerboard (3, h, w, 3)."""
    limits = generation.images.limits_of(trained)
    sources = [element["source"][0] for element in elements]
    drawn = generation.images.draw_all(
        trained, [tasks.RemoveBackground(image=image, limits=limits) for image in sources]
    )
    cut = [of_one[0] for of_one in drawn]
    true = np.stack([element["pixels"] for element in elements])
    rebuilt = autoencoders.reconstruct(trained.codec, trained.codec_params, true)

    exact = true[:, 0, ..., 0] / 255
    model = np.stack([image[..., 3] for image in cut]) / 255
    sets = {"ceiling": rebuilt[:, 0].mean(axis=-1) / 255, "model": model, "chance": np.roll(model, 1, axis=0)}
    scores = {
        name: intervals.mean([image_metrics.alpha_error(a, b) for a, b in zip(alphas, exact, strict=True)])
        for name, alphas in sets.items()
    }
    strips = [
        np.stack([source, element["pixels"][0], generation.images.on_checkerboard(image)])
        for source, element, image in zip(sources, elements, cut, strict=True)
    ]
    return scores, strips


def score_colors(trained: generation.TrainedRun, elements: Sequence[cutouts.Sample]) -> tuple[Scores, list[np.ndarray]]:
    """Errors of palettes; and of each element palette, true and drawn image (3, h, w, 3)."""
    palettes = [element["palette"][: element["num_colors"]] for element in elements]
    limits = generation.images.limits_of(trained)
    requests = [
        tasks.ColorGuided(
            colors=[f"#{bytes(rgb.tolist()).hex()}" for rgb in palette],
            text=trained.text_encoder.cut(element["caption"]),  # as in training
            limits=limits,
            settings=tasks.ImageSettings(cfg_scale=CFG_SCALE, seed=i, height=h, width=w),
        )
        for i, (element, palette) in enumerate(zip(elements, palettes, strict=True))
        for h, w in [element["pixels"].shape[1:3]]
    ]
    drawn = np.stack([of_one[:1] for of_one in generation.images.draw_all(trained, requests)])
    true = np.stack([element["pixels"] for element in elements])
    rebuilt = autoencoders.reconstruct(trained.codec, trained.codec_params, true)

    sets = {"truth": true, "ceiling": rebuilt, "model": drawn, "chance": np.roll(drawn, 1, axis=0)}
    scores = {name: intervals.mean(palette_errors(shown[:, 0], palettes)) for name, shown in sets.items()}
    strips = [
        np.stack([task_report.swatches(palette, element["pixels"].shape[1:3]), element["pixels"][0], image[0]])
        for palette, element, image in zip(palettes, elements, drawn, strict=True)
    ]
    return scores, strips


def palette_errors(shown: UInt8[np.ndarray, "n h w 3"], palettes: Sequence[UInt8[np.ndarray, "p 3"]]) -> list[float]:
    """The palette error of each image."""
    pairs = zip(shown, palettes, strict=True)
    return [image_metrics.palette_error(color.to_lab(image), color.to_lab(asked)) for image, asked in pairs]


def print_scores(scores: dict[str, Scores]) -> None:
    """The scores as a table."""
    print(f"\n{'task':8} {'answers':8} {'error':>9}   95 % interval          n")
    for task, sets in scores.items():
        for name, score in sets.items():
            interval = f"{score['low']:.4f} - {score['high']:.4f}"
            print(f"{task:8} {name:8} {score['value']:9.4f}   {interval:20} {score['n']:4}")


if __name__ == "__main__":
    experiment.main(CONFIG, finish, prepare=prepare)
