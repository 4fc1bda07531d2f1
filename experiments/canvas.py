"""One model for every editing task, on scenes in which every answer is known: text to image first, then all of it.

    python -m experiments.canvas                          autoencoder, pretraining, editing: one after the other
    python -m experiments.canvas steps=20000 run_dir=runs/longer

Two configs share this file. `PRETRAINING` learns images from captions. `CONFIG` starts from it, grown by the inputs
that editing needs (aligned channels, reference frames, palette and task tokens, all silent at first), and learns a
mixture of ten tasks in four shapes of batches, so four programs are compiled. Each stage is a run of its own
(`runs/canvas_vae`, `runs/canvas_pretraining`, `runs/canvas`), found finished or half done when the command runs again.
It ends with the exam of every task in `runs/canvas/evaluation`, which `nova evaluate --run runs/canvas` repeats.

Measured on one of two CPU cores, which tests shared: 22 minutes for the autoencoder (25.8 dB PSNR on all kinds of
images), 26 for pretraining, 57 for editing (2.2 M parameters), both with the encoding of what they show, 8 for the
exam at 128 questions a part: removal 0.99 right, alpha error 0.034, the right object inside the mask 0.74 to 0.77,
mask prompts 0.43 IoU, outpainting 0.61, edges F1 0.52, colours 8.5 dE2000, captions 0.16, variations 0.09.
Seven of 21 bars are met.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

from data_pipelines import autoencoders, datasets
from data_pipelines.conditioned import ConditionedLatents
from data_pipelines.mixture import Mixture
from data_pipelines.scenes import world
from data_pipelines.scenes.editing.source import CanvasPictures, CanvasScenes
from data_pipelines.scenes.world import World
from experiments import image_vae
from nova_jax import experiment, generation
from nova_jax.diffusion import DropRates, FlowMatching
from nova_jax.evaluation import task_report
from nova_jax.models.dit import DiT
from nova_jax.models.text import WordTextEncoder
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.tasks import conditions
from nova_jax.training import optimizer

STEPS = 2800
EDITING = ("add", "replace", "remove", "outpaint", "segment", "matte", "structure")
VAE = dataclasses.replace(image_vae.SMALL_VAE, latent_channels=32)
SHEET = ("generate", "add", "replace", "remove", "outpaint", "segment", "matte", "vary", "structure_edges", "colors")
PROMPTS = ("a red circle", "a blue square and a green triangle", "three yellow circles", "a pink square above a circle")


def make_model(
    width: int = 128, depth: int = 6, text_width: int = 96, text_length: int = 24, **fields: Any
) -> TextToLatent:
    """The network of pretraining; `fields` are the transformer's."""
    dit = DiT(
        width=width,
        depth=depth,
        num_heads=max(2, width // 64),
        in_channels=VAE.latent_channels,
        patch_size=(1, 1, 1),
        text_dim=text_width,
        pooled_dim=text_width,
        has_absolute_positions=True,
        scan_unroll=depth,
    )
    encoder = WordTextEncoder(width=text_width, depth=1, num_heads=2, length=text_length, window=7)
    return TextToLatent(dit=dataclasses.replace(dit, **fields), text_encoder=encoder)


def grown(model: TextToLatent) -> TextToLatent:
    """The same network with the inputs that editing needs."""
    channels = conditions.num_channels(VAE.latent_channels, VAE.compression[1])
    dit = dataclasses.replace(
        model.dit,
        aligned_channels=channels,
        num_frame_roles=1,
        has_palette=True,
        num_tasks=len(conditions.TASKS),
    )
    return dataclasses.replace(model, dit=dit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneTasks:
    """What can be chosen of the data; `prepare` makes batches of it.

    Attributes:
        world: vocabulary and prior.
        length: captioned images; of each edit half as many, of variations, which show six images, a quarter.
        codec_path: folder of an autoencoder; "": that of the run to start from, or a new one.
        cache_path: where latents are kept between runs.
        processes: that draw images and make batches; 0: threads of this one do.
    """

    world: World = world.CANVAS_32
    length: int = 24_000
    codec_path: str = ""
    cache_path: str = "runs/cache"
    processes: int = 0


def text_data(data: SceneTasks) -> ConditionedLatents:
    """Captions and images."""
    return ConditionedLatents(
        sources=(CanvasScenes(data.world, length=data.length),),
        codec_path=data.codec_path,
        cache_path=data.cache_path,
        processes=data.processes,
    )


def task_data(data: SceneTasks) -> Mixture:
    """All tasks: of 20 batches 5 hold captions alone, 11 edits in place, 2 colours and 2 variations."""
    text = text_data(data)

    def sources(*tasks: str, length: int) -> tuple[CanvasScenes, ...]:
        return tuple(CanvasScenes(data.world, task, length=length) for task in tasks)

    edits = dataclasses.replace(text, sources=sources(*EDITING, length=data.length // 2), is_aligned=True)
    colored = sources("colors", length=data.length // 2)
    colors = dataclasses.replace(text, sources=colored, num_frames=1, has_palette=True)
    varied = sources("vary", length=data.length // 4)
    variations = dataclasses.replace(text, sources=varied, num_frames=conditions.MAX_REFERENCES)
    return Mixture(parts=((text, 5), (edits, 11), (colors, 2), (variations, 2)), processes=data.processes)


PRETRAINING = experiment.TrainConfig(
    name="canvas_pretraining",
    model=make_model(),
    objective=FlowMatching(),
    data=SceneTasks(),
    optimizer=optimizer.Muon(peak=7e-3, matrices="hidden", adam_scale=0.25, warmup=100, b2=0.99, schedule="constant"),
    steps=1600,
    batch_size=64,
    ema_decay=0.995,
    checkpoint_every=500,
    preview=experiment.Preview(every=500, prompts=PROMPTS),
)

CONFIG = dataclasses.replace(
    PRETRAINING,
    name="canvas",
    model=grown(PRETRAINING.model),
    objective=FlowMatching(drop_rates=DropRates(aligned=0.05, frames=0.05, palette=0.1)),
    optimizer=dataclasses.replace(PRETRAINING.optimizer, peak=6e-3, schedule="linear"),
    steps=STEPS,
    ema_decay=0.998,
    preview=experiment.Preview(every=1000, prompts=PROMPTS),
)


def make_codec_config(data: SceneTasks) -> experiment.TrainConfig:
    """The autoencoder of all images that the tasks show or draw."""
    pixels = datasets.Pixels(source=CanvasPictures(data.world, seed=1, length=200_000), processes=data.processes)
    return image_vae.make_config(pixels, name="canvas_vae", steps=4000, kl=0.01, vae=VAE)


def prepare(
    config: experiment.TrainConfig,
    pretraining: experiment.TrainConfig = PRETRAINING,
    make_codec_config: Callable[[SceneTasks], experiment.TrainConfig] = make_codec_config,
) -> experiment.TrainConfig:
    """Trains what the run needs and does not name: the autoencoder, and the network to start from."""
    data, start = config.data, config.start_from
    codec = f"{start}/{generation.CODEC_FOLDER}" if start else ""
    codec = data.codec_path or codec or train_codec(make_codec_config(data), f"{config.directory}_vae")
    data = dataclasses.replace(data, codec_path=codec)
    if not start:
        first = dataclasses.replace(
            pretraining,
            data=text_data(data),
            steps=min(pretraining.steps, config.steps),
            run_dir=f"{config.directory}_pretraining",
        )
        start = str(experiment.run(first).directory)
    return dataclasses.replace(config, data=task_data(data), start_from=start)


def train_codec(config: experiment.TrainConfig, run_dir: str) -> str:
    """The autoencoder of `make_codec_config`; returns its folder."""
    held_out = autoencoders.under_another_seed(config.data.source)
    return autoencoders.train(dataclasses.replace(config, run_dir=run_dir), held_out)


finish = functools.partial(task_report.finish, sheet=SHEET)

if __name__ == "__main__":
    experiment.main(CONFIG, then=finish, prepare=prepare)
