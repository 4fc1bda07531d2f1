"""The scenes world at 64 px, eight shapes and up to six objects: the quickstart's bigger sibling.

    python -m experiments.scenes

Trains its autoencoder first, into `RUN_vae`, and finds it there when the command runs again. Writes scores, ceilings
and pictures to report.html in the run folder.

Result: not yet run to the end.
"""

import dataclasses

from data_pipelines import streams
from data_pipelines.scenes import source, world
from experiments import emoji, quickstart, reports
from nova_jax import experiment
from nova_jax.models.dit import DiT
from nova_jax.models.text import ByteTextEncoder
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.training import optimizer

STEPS = 12_000

CONFIG = dataclasses.replace(
    quickstart.CONFIG,
    name="scenes",
    model=TextToLatent(
        dit=DiT(
            width=256,
            depth=8,
            num_heads=4,
            in_channels=16,
            patch_size=(1, 1, 1),
            text_dim=128,
            remat="none",
            scan_unroll=8,
        ),
        text_encoder=ByteTextEncoder(width=128, depth=2, num_heads=2, downsample=4),
    ),
    data=streams.CaptionedLatents(source=source.Scenes(world.SHAPES_64, length=100_000), codec_path="", text_length=96),
    optimizer=optimizer.Muon(peak=5e-3, warmup=200, b2=0.99, schedule="linear", total_steps=STEPS),
    steps=STEPS,
    batch_size=128,
    ema_decay=0.998,
    preview=experiment.Preview(every=1000, prompts=(*quickstart.PROMPTS, "a purple star", "a heart below a ring")),
)

if __name__ == "__main__":
    experiment.main(CONFIG, reports.finish_scenes, prepare=emoji.with_codec)
