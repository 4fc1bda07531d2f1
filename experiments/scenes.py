"""The scenes world at 64 px, eight shapes and up to six objects: the quickstart's bigger sibling.

    python -m experiments.scenes

Trains its autoencoder first, into `RUN_vae`, and finds it there when the command runs again. Writes scores, ceilings
and images to report.html in the run folder.

Measured on one of two CPU cores, tests on the other one: 26 minutes for the autoencoder (31.7 dB PSNR; the parser
reads 99.8 % of 500 held-out reconstructions right), 123 for 12,000 steps of the DiT. GenEval tasks (128 images each):
single object 0.88, two objects 0.79, counting 0.55, colours 0.98, position 0.91, colour attribution 0.83.
"""

import dataclasses
import functools

from data_pipelines import autoencoders, datasets
from data_pipelines.scenes import source, world
from data_pipelines.scenes.exams import geneval_report
from experiments import image_vae, quickstart
from nova_jax import experiment
from nova_jax.diffusion import FlowMatching, time_sampling
from nova_jax.models.dit import DiT
from nova_jax.models.text import WordTextEncoder
from nova_jax.models.text_to_latent import TextToLatent

STEPS = 12_000
WORLD = dataclasses.replace(world.SHAPES_64, kinds=(0.32, 0.46, 0.18, 0.04), wording=quickstart.WORLD.wording)
SCENES = source.Scenes(WORLD, length=100_000)
CODEC_SCENES = source.Scenes(world.SHAPES_64, length=100_000)
VAE = dataclasses.replace(image_vae.SMALL_VAE, latent_channels=8)

CONFIG = dataclasses.replace(
    quickstart.CONFIG,
    name="scenes",
    model=TextToLatent(
        dit=DiT(
            width=128,
            depth=6,
            num_heads=2,
            in_channels=8,
            patch_size=(1, 2, 2),  # sixteen tokens an image, as in the quickstart
            text_dim=128,
            pooled_dim=128,
            has_absolute_positions=True,
            scan_unroll=6,
        ),
        text_encoder=WordTextEncoder(width=128, depth=1, num_heads=2, length=24, window=7),
    ),
    # Four times the quickstart's latents show the same layout through twice the noise.
    objective=FlowMatching(time_sampling=time_sampling.Shifted(shift=2.0)),
    data=datasets.CaptionedLatents(source=SCENES, codec_path=""),
    optimizer=dataclasses.replace(quickstart.CONFIG.optimizer, warmup=100),
    steps=STEPS,
    ema_decay=0.998,
    preview=experiment.Preview(every=1000, prompts=(*quickstart.PROMPTS, "a purple star", "a heart below a ring")),
)

prepare = functools.partial(
    autoencoders.with_codec,
    make_config=functools.partial(image_vae.make_config, steps=5000, batch_size=16, kl=0.02, vae=VAE),
    source=CODEC_SCENES,
    held_out=autoencoders.under_another_seed(CODEC_SCENES),
)

if __name__ == "__main__":
    experiment.main(CONFIG, geneval_report.write, prepare=prepare)
