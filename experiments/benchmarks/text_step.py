"""What a token a word costs: the quickstart's training step with byte groups, as it was, and as it is.

python -m experiments.benchmarks.text_step PATH          writes the figures as JSON to PATH

The two steps run in turn (`experiments.benchmarks.paired_steps`).
"""

import dataclasses
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import quickstart
from experiments.benchmarks import paired_steps
from experiments.studies import text_road
from nova_jax.types import Batch, Conditioning


def make_batch(model: Any) -> Batch:
    """Latents, and captions as the model reads them."""
    config = quickstart.CONFIG
    x0 = np.random.default_rng(0).standard_normal((config.batch_size, 1, 4, 4, model.dit.in_channels), np.float32)
    captions = ["a small red circle to the left of a blue square"] * config.batch_size
    ids, mask = model.text_encoder.tokenize(captions)
    return Batch(jnp.asarray(x0), Conditioning(text_ids=jnp.asarray(ids), text_mask=jnp.asarray(mask)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    words = quickstart.CONFIG.model
    dit = dataclasses.replace(words.dit, has_absolute_positions=False)
    groups = dataclasses.replace(words, dit=dit, text_encoder=text_road.BYTES)
    pair = [(name, model, make_batch(model)) for name, model in (("byte_groups", groups), ("words", words))]
    paired_steps.report(paired_steps.measure(*pair), "bench_text_step")
