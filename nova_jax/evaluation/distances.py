"""Distances between two clouds of points, for problems whose truth can be sampled.

    rms                  root mean square distance, point by point: for maps from the same noise
    sliced_wasserstein   W2 averaged over random lines; sorting solves it on each (Bonneel et al. 2015)
    energy_distance      2 E|x - y| - E|x - x'| - E|y - y'| (Szekely & Rizzo 2013), unbiased
    nearest_shares       how the points divide among given centres, such as the modes of a mixture

A distance between two finite clouds of the same distribution is not zero: print it beside, as the floor.
"""

import numpy as np
from jaxtyping import Float


def rms(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"]) -> float:
    """sqrt(mean |x_i - y_i|^2), the squared length summed over coordinates."""
    return float(np.sqrt(np.mean(np.sum(np.square(x - y), axis=1))))


def sliced_wasserstein(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], *, directions: int = 64, seed: int = 0
) -> float:
    """Sqrt of the mean over random directions of the squared one-dimensional W2; as many points in each cloud.

    Raises:
        ValueError: clouds of different sizes.
    """
    if x.shape != y.shape:
        raise ValueError(f"the clouds must have as many points each, got shapes {x.shape} and {y.shape}")
    lines = np.random.default_rng(seed).standard_normal((x.shape[1], directions))
    lines /= np.linalg.norm(lines, axis=0)
    gaps = np.sort(x @ lines, axis=0) - np.sort(y @ lines, axis=0)
    return float(np.sqrt(np.mean(np.square(gaps))))


def energy_distance(x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "m d"]) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over distinct pairs: may fall below 0 for equal distributions."""

    def mean_distance(a: np.ndarray, b: np.ndarray, pairs: int) -> float:
        blocks = (a[i : i + 512] for i in range(0, len(a), 512))
        return sum(float(np.linalg.norm(block[:, None] - b[None], axis=-1).sum()) for block in blocks) / pairs

    n, m = len(x), len(y)
    return 2 * mean_distance(x, y, n * m) - mean_distance(x, x, n * (n - 1)) - mean_distance(y, y, m * (m - 1))


def nearest_shares(x: Float[np.ndarray, "n d"], centres: Float[np.ndarray, "k d"]) -> Float[np.ndarray, " k"]:
    """The share of points whose nearest centre is each one."""
    nearest = np.argmin(np.linalg.norm(x[:, None] - centres[None], axis=-1), axis=1)
    return np.bincount(nearest, minlength=len(centres)) / len(x)
