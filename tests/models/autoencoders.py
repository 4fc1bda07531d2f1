"""Parameters and pixels for tests of autoencoders."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.cache
def random_params(vae):
    """No parameter keeps its initial value: zeros and ones would hide mistakes."""
    random = np.random.default_rng(0)

    def draw(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5 if leaf.ndim > 1 else 0.3
        return jnp.asarray(scale * random.standard_normal(leaf.shape, np.float32))

    return jax.tree.map(draw, jax.eval_shape(vae.init, jax.random.key(0)))


def pixels_for(vae, frames, seed=2):
    _, space, _ = vae.compression
    return jax.random.uniform(jax.random.key(seed), (1, frames, 2 * space, space, 3), minval=-1.0)
