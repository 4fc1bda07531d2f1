"""A teacher and its student at a size that compiles in seconds, and every method at settings for a few steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax import distillation, recipe
from nova_jax.diffusion import FlowMatching
from nova_jax.inference import TextToImage
from nova_jax.models import dit, text, text_to_latent
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
    "dmd2": distillation.DMD2(guidance=GUIDANCE, num_steps=2, critic_updates=2, critic_optimizer=CRITIC),
    "joint": distillation.Joint(
        guidance=GUIDANCE,
        matching=distillation.DMD2(num_steps=2, critic_updates=2, critic_optimizer=CRITIC),
        matching_scale=0.5,
    ),
}


def make_model(**fields):
    """A DiT with its byte encoder; a small time scale keeps derivatives by t small."""
    sizes = {"width": 32, "depth": 2, "num_heads": 8, "in_channels": 4, "text_dim": 16, "freq_dim": 32}
    return text_to_latent.TextToLatent(
        dit=dit.DiT(**sizes, patch_size=(1, 2, 2), time_scale=4.0, gate_init="random", **fields),
        text_encoder=text.ByteTextEncoder(width=16, depth=1, num_heads=8, byte_width=8),
    )


def rows(position, count=BATCH):
    """The batch that starts at `position`."""
    rng = np.random.default_rng(position)
    ids, mask = text.encode_bytes([f"a picture of {position + i}" for i in range(count)], 16)
    cond = Conditioning(text_ids=ids, text_mask=mask)
    return Batch(rng.standard_normal((count, *SHAPE), np.float32), cond)


@functools.cache
def make_teacher(**fields):
    """Past initialisation: the zeros of the head and elsewhere are gone."""
    model = make_model(**fields)
    batch = rows(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch.x0, jnp.zeros(BATCH), batch.cond)
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: rng.standard_normal(a.shape, np.float32) * a.shape[-1] ** -0.5, shapes["params"])
    return TextToImage(model, params, FlowMatching(), None, {}, SHAPE, 16)


def make_recipe(name, **fields):
    """The recipe of a method, its student grown from the teacher."""
    method = METHODS[name]
    return recipe.distilled(
        make_model(has_second_time=True, **fields), method, OPTIMIZER, rows(0, 1), make_teacher(), seed=0, ema_decay=0.9
    )
