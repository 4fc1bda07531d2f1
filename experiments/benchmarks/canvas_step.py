"""What the inputs of editing cost a batch that uses none of them: one network plain, and grown.

python -m experiments.benchmarks.canvas_step PATH          writes the figures as JSON to PATH

The two steps run in turn (`experiments.benchmarks.paired_steps`).
"""

import sys

import jax.numpy as jnp
import numpy as np

from experiments import canvas
from experiments.benchmarks import paired_steps
from nova_jax.types import Batch, Conditioning

BATCH = 64


def make_batch() -> Batch:
    """Captions and latents of the canvas experiment's shapes."""
    x0 = np.random.default_rng(0).standard_normal((BATCH, 1, 4, 4, canvas.VAE.latent_channels), np.float32)
    ids, mask = canvas.make_model().text_encoder.tokenize(["a red circle above a blue square on white"] * BATCH)
    return Batch(jnp.asarray(x0), Conditioning(text_ids=jnp.asarray(ids), text_mask=jnp.asarray(mask)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    plain = canvas.make_model()
    found = paired_steps.measure(("plain", plain, make_batch()), ("grown", canvas.grown(plain), make_batch()))
    paired_steps.report(found, "bench_canvas_step")
