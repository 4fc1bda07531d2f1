"""Data distributions whose denoiser, and whose flow from noise to data, are known in closed form.

For a mixture of Gaussians, x_t is a mixture too, and E[x0 | x_t] a sum over its components. In one dimension the flow
of rectified flow carries quantiles to quantiles; a product of one-dimensional mixtures does so in each coordinate. So
samplers and few-step students can be held against the truth, without a trained model.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray
from scipy import special

from nova_jax.diffusion import schedules
from nova_jax.types import Denoised, Denoiser


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians in d dimensions: weights (k,), means (k, d), covariances (k, d, d)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def denoiser(self, schedule: schedules.Schedule) -> Denoiser:
        """The exact denoiser, for batches (b, d)."""
        variances, axes = np.linalg.eigh(self.covariances)
        variances, means, log_weights = variances[None], self.means[None], np.log(self.weights)[None]

        def denoise(x: Array, t: Array, cond: Any) -> Denoised:
            alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
            spread = alpha**2 * variances + sigma**2  # b k d, in the eigenbasis of each component
            z = jnp.einsum("kij,bki->bkj", axes, x[:, None, :] - alpha * means)
            logits = log_weights - jnp.sum(z**2 / spread + jnp.log(spread), axis=-1) / 2
            gamma = jax.nn.softmax(logits, axis=-1)
            x0 = means + jnp.einsum("kij,bkj->bki", axes, alpha * variances * z / spread)
            eps = jnp.einsum("kij,bkj->bki", axes, sigma * z / spread)
            return Denoised(jnp.einsum("bk,bkd->bd", gamma, x0), jnp.einsum("bk,bkd->bd", gamma, eps))

        return denoise

    def flow(self, z: Float[np.ndarray, "n d"], t_from: float = 1.0, t_to: float = 0.0) -> Float[np.ndarray, "n d"]:
        """The exact rectified flow of one Gaussian."""
        assert len(self.weights) == 1
        variances, axes = np.linalg.eigh(self.covariances[0])
        spread = [np.sqrt((1 - t) ** 2 * variances + t**2) for t in (t_from, t_to)]
        along = (z - (1 - t_from) * self.means[0]) @ axes * spread[1] / spread[0]
        return (1 - t_to) * self.means[0] + along @ axes.T

    def mean(self) -> Float[np.ndarray, " d"]:
        """E[x0]."""
        return self.weights @ self.means

    def draw(self, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
        """Samples of the data."""
        key_component, key_noise = jax.random.split(key)
        component = jax.random.choice(key_component, len(self.weights), (count,), p=jnp.asarray(self.weights))
        roots = jnp.asarray(np.linalg.cholesky(self.covariances))[component]
        z = jax.random.normal(key_noise, (count, self.means.shape[1]))
        return jnp.asarray(self.means)[component] + jnp.einsum("nij,nj->ni", roots, z)


@dataclasses.dataclass(frozen=True)
class Product:
    """Independent one-dimensional mixtures."""

    coordinates: tuple[Mixture, ...]

    def denoiser(self, schedule: schedules.Schedule) -> Denoiser:
        """The exact denoiser, for batches (b, d)."""
        denoisers = [coordinate.denoiser(schedule) for coordinate in self.coordinates]

        def denoise(x: Array, t: Array, cond: Any) -> Denoised:
            each = [denoise(x[:, i : i + 1], t, cond) for i, denoise in enumerate(denoisers)]
            return Denoised(*(jnp.concatenate(part, axis=1) for part in zip(*each, strict=True)))

        return denoise

    def flow(self, z: Float[np.ndarray, "n d"], t_from: float = 1.0, t_to: float = 0.0) -> Float[np.ndarray, "n d"]:
        """The exact rectified flow: quantiles to quantiles, by bisection of the nearer tail."""
        return np.stack([_quantile_map(c, z[:, i], t_from, t_to) for i, c in enumerate(self.coordinates)], axis=1)

    def mean(self) -> Float[np.ndarray, " d"]:
        """E[x0]."""
        return np.concatenate([coordinate.mean() for coordinate in self.coordinates])

    def draw(self, key: PRNGKeyArray, count: int) -> Float[Array, "n d"]:
        """Samples of the data."""
        keys = jax.random.split(key, len(self.coordinates))
        return jnp.concatenate([c.draw(k, count) for c, k in zip(self.coordinates, keys, strict=True)], axis=1)


def _quantile_map(mixture: Mixture, x: np.ndarray, t_from: float, t_to: float) -> np.ndarray:
    mu, std = mixture.means[:, 0], np.sqrt(mixture.covariances[:, 0, 0])

    def tails(x: np.ndarray, t: float) -> tuple[np.ndarray, np.ndarray]:
        z = (x[:, None] - (1 - t) * mu) / np.sqrt(((1 - t) * std) ** 2 + t**2)
        return special.ndtr(z) @ mixture.weights, special.ndtr(-z) @ mixture.weights

    low, high = tails(x, t_from)
    left, right = np.full_like(x, -60.0), np.full_like(x, 60.0)
    for _ in range(120):
        middle = (left + right) / 2
        middle_low, middle_high = tails(middle, t_to)
        too_small = np.where(low <= 0.5, middle_low < low, middle_high > high)
        left, right = np.where(too_small, middle, left), np.where(too_small, right, middle)
    return (left + right) / 2


def _line(weights: list[float], means: list[float], stds: list[float]) -> Mixture:
    return Mixture(np.asarray(weights), np.asarray(means)[:, None], np.asarray(stds)[:, None, None] ** 2)


def _turn(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _five_modes() -> Mixture:
    angles = 2 * np.pi * np.arange(5) / 5 + 0.3
    means = 1.6 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    covariances = [_turn(k / 2) @ np.diag([0.02 + 0.02 * k, 0.12]) @ _turn(k / 2).T for k in range(5)]
    return Mixture(np.array([0.1, 0.3, 0.2, 0.25, 0.15]), means, np.array(covariances))


def _image_like() -> Mixture:
    spectrum = (1.0 + np.arange(64)) ** -1.5
    spectrum /= spectrum.mean()
    means = np.random.default_rng(7).standard_normal((4, 64)) * np.sqrt(spectrum)
    return Mixture(np.full(4, 0.25), means, np.stack([np.diag(0.25 * spectrum)] * 4))


# One anisotropic Gaussian; a product of mixtures, smooth enough for orders; five modes on a circle, with separatrices;
# two scales far apart; four modes in 64 dimensions with the power-law spectrum of images.
GAUSSIAN = Mixture(np.ones(1), np.array([[0.7, -0.4]]), (_turn(0.6) @ np.diag([0.09, 1.21]) @ _turn(0.6).T)[None])
PRODUCT = Product(
    (_line([0.5, 0.5], [-1.0, 1.0], [0.25, 0.25]), _line([0.3, 0.4, 0.3], [-1.4, 0.0, 1.2], [0.2, 0.3, 0.15]))
)
FIVE_MODES = _five_modes()
TWO_SCALES = _line([0.25] * 4, [-1.05, -0.95, 0.95, 1.05], [0.01] * 4)
IMAGE_LIKE = _image_like()
