"""Captioned images from a WebDataset tar, from nothing: an autoencoder, then a DiT on its latents.

    python -m experiments.emoji data.source.paths=/data/emoji.tar

Any tar of `KEY.png` (or .jpg, .webp) and `KEY.txt` will do; transparent images are laid on white. The tar is read in
place, never extracted. The autoencoder is trained first, into `RUN_vae`, and found there when the command runs again.

Measured with captions in groups of bytes, before words, on 1,870 emoji with their names, one of two CPU cores: 16
minutes for the autoencoder (25.9 dB PSNR on these images), 39 for the DiT, interrupted and resumed on the way. Seven
of eight prompts are recognised at once, pizza half. With one caption and one image a kind, this shows that real input
is learnt, not that it generalises.
"""

import functools

from data_pipelines import autoencoders, datasets
from data_pipelines.sources import WebDataset
from experiments import image_vae
from nova_jax import experiment
from nova_jax.diffusion import FlowMatching
from nova_jax.evaluation import run_report
from nova_jax.models.dit import DiT
from nova_jax.models.text import WordTextEncoder
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.training import optimizer

SIZE = (32, 32)
PROMPTS = (
    "grinning face",
    "red heart",
    "pizza",
    "dog face",
    "sun",
    "evergreen tree",
    "red apple",
    "soccer ball",
)
STEPS = 4500

CONFIG = experiment.TrainConfig(
    name="emoji",
    model=TextToLatent(
        dit=DiT(
            width=128,
            depth=8,
            num_heads=2,
            in_channels=16,
            patch_size=(1, 1, 1),
            text_dim=96,
            pooled_dim=96,
            has_absolute_positions=True,
            scan_unroll=8,
        ),
        text_encoder=WordTextEncoder(width=96, depth=1, num_heads=2, length=16),
    ),
    objective=FlowMatching(),
    data=datasets.CaptionedLatents(source=WebDataset("emoji.tar"), codec_path="", size=SIZE),
    optimizer=optimizer.Muon(peak=5e-3, matrices="hidden", adam_scale=0.25, warmup=100, b2=0.99, schedule="linear"),
    steps=STEPS,
    batch_size=64,
    ema_decay=0.998,
    preview=experiment.Preview(every=1000, prompts=PROMPTS),
)


# Images need more of their detail than scenes do, hence the weaker KL.
VAE_CONFIG = functools.partial(image_vae.make_config, steps=4000, kl=0.005)
prepare = functools.partial(autoencoders.with_codec, make_config=VAE_CONFIG)

if __name__ == "__main__":
    experiment.main(CONFIG, run_report.write, prepare=prepare)
