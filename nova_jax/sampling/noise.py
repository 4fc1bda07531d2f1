"""Randomness that belongs to a sample, not to its batch: one key per sample.

The same seed gives the same noise whatever the batch size, the place in the batch and the mesh.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

START = 0  # what is folded into a sample's key for its initial noise; step i of a stochastic sampler folds in i + 1


def keys_from_seeds(seeds: ArrayLike | Sequence[int]) -> Key[Array, " b"]:
    """One key per sample, from one integer per sample."""
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def keys_for_batch(key: Key[Array, "..."], batch_size: int) -> Key[Array, " b"]:
    """One key per sample: `key` itself if it already holds one for each, else derived from it and the sample's index.

    Raises:
        ValueError: keys for another number of samples.
    """
    if key.ndim == 0:
        return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(batch_size))
    if key.shape != (batch_size,):
        raise ValueError(f"pass one key, or one per sample: got keys of shape {key.shape} for {batch_size} samples")
    return key


def fold_in(keys: Key[Array, " b"], number: ArrayLike) -> Key[Array, " b"]:
    """Folds the same number into every sample's key."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def normal(keys: Key[Array, " b"], shape: tuple[int, ...]) -> Float[Array, "b *dims"]:
    """Standard normal noise; `shape` is that of one sample."""
    rows = jax.vmap(lambda key: jax.random.normal(key, shape))(keys)
    return jax.lax.optimization_barrier(rows)  # fused into its use, the last bit would depend on the batch size


def initial_noise(seeds: ArrayLike | Sequence[int], shape: tuple[int, ...]) -> Float[Array, "b *dims"]:
    """The noise that sampling starts from, one integer seed per sample; `shape` is that of one sample, f h w c.

    Example:
        noise = initial_noise([0, 1, 2], (1, 16, 16, 4))  # (3, 1, 16, 16, 4)
    """
    return normal(fold_in(keys_from_seeds(seeds), START), shape)
