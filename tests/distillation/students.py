"""A teacher and its student at a size that compiles in seconds, and every method at settings for a few steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax import distillation
from nova_jax.diffusion import FlowMatching
from nova_jax.generation import TrainedRun
from nova_jax.models import dit
from nova_jax.models.text import WordTextEncoder
from nova_jax.training import optimizer
from nova_jax.types import Batch, Conditioning

BATCH, SHAPE = 8, (1, 4, 4, 4)
OPTIMIZER = optimizer.AdamW(peak=1e-3, warmup=1)
GUIDANCE = distillation.Guidance(scale=2.0)
CRITIC = optimizer.AdamW(peak=1e-3, warmup=0)

METHODS = {
    "guidance": distillation.GuidanceDistillation(guidance=GUIDANCE),
    "progressive": distillation.Progressive(guidance=GUIDANCE, first_steps=4, stage_length=2),
    "shortcut": distillation.Shortcut(guidance=GUIDANCE, max_steps=8),
    "mean_flow": distillation.MeanFlow(guidance=GUIDANCE),
    "improved_mean_flow": distillation.MeanFlow(source="data", is_improved=True, guidance=GUIDANCE),
    "continuous_consistency": distillation.MeanFlow(pairs=distillation.ToData(), norm_power=0.5, warmup=3),
    "discrete_consistency": distillation.DiscreteConsistency(guidance=GUIDANCE, num_intervals=8),
    "dmd2": distillation.DMD2(guidance=GUIDANCE, num_steps=(2,), critic_updates=2, critic_optimizer=CRITIC),
    "joint": distillation.Joint(
        guidance=GUIDANCE,
        matching=distillation.DMD2(num_steps=(2,), critic_updates=2, critic_optimizer=CRITIC),
        matching_scale=0.5,
    ),
}


def make_model(**fields):
    """A DiT; a small time scale keeps derivatives by t small."""
    sizes = {"width": 32, "depth": 2, "num_heads": 2, "in_channels": 4, "text_dim": 16, "freq_dim": 32}
    return dit.DiT(**sizes, patch_size=(1, 2, 2), time_scale=4.0, gate_init="random", **fields)


def rows(position, count=BATCH):
    """The batch that starts at `position`."""
    rng = np.random.default_rng(position)
    states = rng.standard_normal((count, 3, 16), np.float32)
    cond = Conditioning(text=states, text_mask=np.ones((count, 3), bool))
    return Batch(rng.standard_normal((count, *SHAPE), np.float32), cond)


@functools.cache
def make_teacher(**fields):
    """Past initialisation: the zeros of the head and elsewhere are gone."""
    model = make_model(**fields)
    batch = rows(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch.x0, jnp.zeros(BATCH), batch.cond)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) * a.shape[-1] ** -0.5, shapes["params"])
    return TrainedRun(model, params, FlowMatching(), None, {}, SHAPE, WordTextEncoder(length=3))
