"""Randomness that belongs to a sample, not to its batch: one key per sample.

The same seed gives the same noise whatever the batch size, the place in the batch and the mesh.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key

from nova_jax.diffusion import schedules

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


def start(
    eps: Float[Array, "b *dims"], t: Float[Array, ""], schedule: schedules.Schedule, *, std: float | int = 1.0
) -> Float[Array, "b *dims"]:
    """The x that sampling from time t starts with, made of initial noise; at t = 1 sigma eps.

    At t < 1 data have begun to show: sqrt((alpha std)^2 + sigma^2) eps has the variance of x_t for data of mean 0 and
    this standard deviation, as normalised latents are, and is the Gaussian closest to it (Analytic-Init: Zhao et al.
    2024, arXiv 2406.15735, section 4.1).
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return jnp.where(t < 1, jnp.sqrt((alpha * std) ** 2 + sigma**2), sigma) * eps


def renoise(
    x: Float[Array, "b *dims"],
    t: Float[Array, ""],
    t_up: Float[Array, ""],
    z: Float[Array, "b *dims"],
    schedule: schedules.Schedule,
) -> Float[Array, "b *dims"]:
    """Noises x, which lies at t, up to t_up >= t: what lies on the marginal at t then lies on that at t_up.

        (alpha_up / alpha) x + sqrt(sigma_up^2 - (alpha_up / alpha)^2 sigma^2) z

    The conditional of x at t_up given x at t, for z ~ N(0, I) of x's shape; x itself for t_up = t.
    """
    alpha = schedule.alpha(t)
    ratio = jnp.where(alpha > 0, schedule.alpha(t_up) / jnp.where(alpha > 0, alpha, 1), 1)
    ratio = jnp.where(t_up == t, 1, ratio)
    added = schedule.sigma(t_up) ** 2 - (ratio * schedule.sigma(t)) ** 2
    return ratio * x + root(added) * z


def root(variance: Float[Array, "..."]) -> Float[Array, "..."]:
    """The square root of a variance that may be 0, or just below by rounding: 0 there, and so is its derivative."""
    positive = variance > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, variance, 1)), 0)


def required(keys: Key[Array, " b"] | None, sampler: Any) -> Key[Array, " b"]:
    """The keys, or a ValueError that says which sampler needs them."""
    if keys is None:
        raise ValueError(f"{type(sampler).__name__} is stochastic: pass key=..., one key or one per sample")
    return keys
