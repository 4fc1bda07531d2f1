"""CIFAR-10 with captions ("a photo of a cat") from Parquet files with encoded images: an autoencoder, then a DiT.

    python -m experiments.cifar10 data.source.paths=/data/cifar10_train.parquet

The file has a column of encoded images (`image`) and one of captions (`caption`); rename them with
`data.source.image=...`. The autoencoder is trained first, into `RUN_vae`, and found there when the command runs again.

Measured on the 50,000 training images, cut short: 1,000 steps with the emoji experiment's autoencoder in place of its
own (data.codec_path=runs/emoji_vae/codec steps=1000), 8 minutes on one of two CPU cores. The
loss falls from 1.59 (steps 1 to 50) to 1.15; images have the colours of their class, sky and sea for airplane and
ship, and no objects yet. Not run at its full length.
"""

import dataclasses

from data_pipelines import datasets
from data_pipelines.sources import Parquet
from experiments import emoji
from nova_jax import experiment
from nova_jax.evaluation import run_report

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PROMPTS = tuple(f"a photo of {'an' if name[0] in 'aeiou' else 'a'} {name}" for name in CLASSES)

CONFIG = dataclasses.replace(
    emoji.CONFIG,
    name="cifar10",
    data=datasets.CaptionedLatents(source=Parquet("cifar10_train.parquet"), codec_path=""),
    preview=experiment.Preview(every=1000, prompts=PROMPTS),
)

if __name__ == "__main__":
    experiment.main(CONFIG, run_report.write, prepare=emoji.prepare)
