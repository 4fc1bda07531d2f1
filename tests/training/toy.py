"""A tiny denoiser with the parameter names of the DiT, its data, and a whole run: what the training tests train."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax.parallel.constrain import constrain
from nova_jax.training import optimizer
from nova_jax.types import Batch, Conditioning

WIDTH, HEADS, DEPTH, SHAPE, BATCH = 16, 8, 2, (1, 4, 4, 8), 8
OPTIMIZER = optimizer.AdamW(peak=3e-3, warmup=5, weight_decay=0.01)


SHAPES = {
    "patch_embed": {"kernel": (SHAPE[-1], WIDTH)},
    "blocks": {
        "self_attention": {name: {"kernel": (DEPTH, WIDTH, WIDTH)} for name in ("query", "key", "value", "out")},
        "mlp": {
            "up": {"kernel": (DEPTH, WIDTH, 2 * WIDTH), "bias": (DEPTH, 2 * WIDTH)},
            "down": {"kernel": (DEPTH, 2 * WIDTH, WIDTH)},
        },
    },
    "head": {"kernel": (WIDTH, SHAPE[-1])},
}


def init_params(key):
    """One draw, cut into all parameters: quicker to compile than one draw for each."""
    shapes, tree = jax.tree.flatten(SHAPES, is_leaf=lambda node: isinstance(node, tuple))
    sizes = [math.prod(shape) for shape in shapes]
    parts = jnp.split(0.2 * jax.random.normal(key, (sum(sizes),)), np.cumsum(sizes)[:-1])
    return jax.tree.unflatten(tree, [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)])


def network(params, x, t, cond):
    """Patch embedding plus t, two blocks of attention and MLP, head."""
    del cond
    h = _linear(params["patch_embed"], x.reshape(x.shape[0], -1, x.shape[-1])) + t.reshape(-1, 1, 1)
    h, _ = jax.lax.scan(_block, constrain(h, "batch", "tokens", "width"), params["blocks"])
    return _linear(params["head"], h).reshape(x.shape)


def _block(h, p):
    q, k, v = (_heads(_linear(p["self_attention"][name], h)) for name in ("query", "key", "value"))
    h = h + _linear(p["self_attention"]["out"], jax.nn.dot_product_attention(q, k, v).reshape(h.shape))
    h = h + _linear(p["mlp"]["down"], jax.nn.silu(_linear(p["mlp"]["up"], h)))
    return constrain(h, "batch", "tokens", "width"), None


def _heads(x):
    return constrain(x.reshape(*x.shape[:2], HEADS, -1), "batch", "tokens", "heads", "head_dim")


def _linear(p, x):
    y = jnp.einsum("bni,io->bno", x, p["kernel"])
    return y + p["bias"].reshape(1, 1, -1) if "bias" in p else y


def objective(network, params, batch, key):
    """Flow matching with one time and one noise per sample, drawn from the key."""
    key_t, key_eps = jax.random.split(key)
    t, eps = jax.random.uniform(key_t, batch.x0.shape[:1]), jax.random.normal(key_eps, batch.x0.shape)
    s = t.reshape(-1, 1, 1, 1, 1)
    error = network(params, (1 - s) * batch.x0 + s * eps, t, batch.cond) - (eps - batch.x0)
    return jnp.mean(error**2), {"mean_t": jnp.mean(t)}


def sample(index):
    return np.random.default_rng(index).standard_normal(SHAPE, np.float32)


def rows(position, batch_size=BATCH, shard=(0, 1)):
    """The rows of one process of the batch that starts at `position`."""
    size = batch_size // shard[1]
    first = position + shard[0] * size
    return Batch(np.stack([sample(first + i) for i in range(size)]), Conditioning())


def batches(position, place=lambda batch: batch, *, shard=(0, 1), pause=0.0, rows=rows):
    while True:
        time.sleep(pause)
        yield place(rows(position, shard=shard))
        position += BATCH
