"""The training loss of the autoencoder: reconstruct pixels through a Gaussian bottleneck, with no pretrained network.

    z ~ q(z | x) = N(mean, exp(logvar)),   y = decode(z),   e = y - x

    loss = w_l1 mean|e| + w_l2 mean e^2 + w_pyramid P(e) + w_motion M(e) + w_ssim (1 - SSIM(y, x)) + w_kl KL        (1)
    KL   = mean over latent entries of (mean^2 + exp(logvar) - 1 - logvar) / 2                                      (2)
    P(e) = mean|e_n| + sum_{l<n} mean|e_l - U D e_l|,   e_{l+1} = D e_l,  e_0 = e                                   (3)
    M(e) = mean|e_(f+1) - e_f| over frames f; 0 for an image                                                        (4)

D averages 2 x 2 pixels and U repeats them. P weighs errors in every octave of spatial frequency alike, where plain L1
neglects coarse ones: the Laplacian pyramid loss of Bojanowski et al. 2018 (arXiv 1707.05776) with a box filter. M adds
to the cost of errors that flicker, and nothing to that of errors that stay. SSIM (Wang et al. 2004, doi
10.1109/TIP.2003.819861, eq. 13) compares local means, variances and covariances in a Gaussian window. The variational
bound is Kingma and Welling 2014 (arXiv 1312.6114, eq. 10); a small w_kl only keeps latents near the origin and smooth,
as in latent diffusion (Rombach et al. 2022, arXiv 2112.10752, section 3.1).
"""

import dataclasses
import math
from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from nova_jax.types import Batch, Metrics, Params, Pixels

Latents = Float[Array, "b g i j d"]

PIXEL_RANGE = 2.0  # pixels lie in [-1, 1]
WINDOW, WINDOW_STD = 11, 1.5  # SSIM's Gaussian window, in pixels (Wang et al. 2004)


@runtime_checkable
class Autoencoder(Protocol):
    """What the objective needs of `models.vae.VAE`."""

    def encode(self, params: Params, pixels: Pixels) -> tuple[Latents, Latents]:
        """Mean and log-variance of q(z | x)."""
        ...

    def sample(self, mean: Latents, logvar: Latents, key: PRNGKeyArray) -> Latents:
        """A draw from q(z | x)."""
        ...

    def decode_unclipped(self, params: Params, latents: Latents) -> Pixels:
        """Pixels, not limited to [-1, 1]."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """Equation (1) over a batch whose `x0` is pixels; a term of weight 0 is not computed.

    Metrics: `loss`, every term before its weight, and `psnr` in dB of the reconstruction limited to [-1, 1].

    Attributes:
        l1: weight of the absolute error.
        l2: weight of the squared error.
        pyramid: weight of equation (3).
        ssim: weight of 1 - SSIM; images need at least 11 x 11 pixels.
        motion: weight of equation (4).
        kl: weight of equation (2).
        levels: n of equation (3); height and width must be multiples of 2^n.
    """

    l1: float = 1.0
    l2: float = 0.0
    pyramid: float = 1.0
    ssim: float = 0.1
    motion: float = 0.0
    kl: float = 1e-4
    levels: int = 3

    def __call__(
        self, network: Autoencoder, params: Params, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss and its metrics, in float32."""
        x = jnp.asarray(batch.x0, jnp.float32)
        mean, logvar = network.encode(params, x)
        y = network.decode_unclipped(params, network.sample(mean, logvar, key))
        error = y - x
        terms = {
            "l1": (self.l1, lambda: jnp.mean(jnp.abs(error))),
            "l2": (self.l2, lambda: jnp.mean(jnp.square(error))),
            "pyramid": (self.pyramid, lambda: pyramid_error(error, self.levels)),
            "ssim": (self.ssim, lambda: 1.0 - jnp.mean(ssim(y, x))),
            "motion": (self.motion, lambda: motion_error(error)),
            "kl": (self.kl, lambda: jnp.mean(kl_divergence(mean, logvar))),
        }
        metrics = {name: term() for name, (weight, term) in terms.items() if weight}
        loss = jnp.asarray(sum(terms[name][0] * value for name, value in metrics.items()))
        return loss, {"loss": loss, **metrics, "psnr": jnp.mean(psnr(jnp.clip(y, -1.0, 1.0), x))}


def kl_divergence(mean: Latents, logvar: Latents) -> Latents:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of every latent entry, in nats: equation (2) before the mean."""
    return 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)


def pyramid_error(error: Pixels, levels: int) -> Float[Array, ""]:
    """Equation (3) for the error of a reconstruction; height and width must be multiples of 2^levels."""
    if error.shape[2] % 2**levels or error.shape[3] % 2**levels:
        raise ValueError(
            f"a pyramid of {levels} levels needs height and width in multiples of {2**levels}; "
            f"got {error.shape[2]} x {error.shape[3]}: set fewer levels"
        )
    total = jnp.zeros(())
    for _ in range(levels):
        b, f, h, w, c = error.shape
        blocks = error.reshape(b, f, h // 2, 2, w // 2, 2, c)
        means = jnp.mean(blocks, axis=(3, 5), keepdims=True)
        total = total + jnp.mean(jnp.abs(blocks - means))
        error = means.reshape(b, f, h // 2, w // 2, c)
    return total + jnp.mean(jnp.abs(error))


def motion_error(error: Pixels) -> Float[Array, ""]:
    """Equation (4) for the error of a reconstruction."""
    changes = jnp.abs(jnp.diff(error, axis=1))
    return jnp.sum(changes) / max(changes.size, 1)


def ssim(y: Pixels, x: Pixels) -> Float[Array, "b f"]:
    """Structural similarity of every frame, at most 1, reached only by y = x; averaged over windows and channels."""
    if min(x.shape[2:4]) < WINDOW:
        raise ValueError(f"SSIM needs images of {WINDOW} x {WINDOW} pixels or more; got {x.shape[2]} x {x.shape[3]}")
    c1, c2 = (0.01 * PIXEL_RANGE) ** 2, (0.03 * PIXEL_RANGE) ** 2
    means = _window_means(jnp.concatenate([x, y, x * x, y * y, x * y], axis=-1))
    mean_x, mean_y, mean_xx, mean_yy, mean_xy = jnp.split(means, 5, axis=-1)
    squares, product = mean_x * mean_x + mean_y * mean_y, mean_x * mean_y
    similarity = (2 * product + c1) * (2 * (mean_xy - product) + c2)
    similarity = similarity / ((squares + c1) * (mean_xx + mean_yy - squares + c2))
    return jnp.mean(similarity, axis=(2, 3, 4))


def _window_means(x: Pixels) -> Float[Array, "b f i j c"]:
    """Gaussian-weighted mean over every window inside the image, as two products with banded matrices."""
    rows, columns = _bands(x.shape[2]), _bands(x.shape[3])
    return jnp.einsum("ih,bfhwc,jw->bfijc", rows, x, columns, precision="highest")


def _bands(size: int) -> np.ndarray:
    """One row for every position of the window, with its weights."""
    weights = np.exp(-0.5 * ((np.arange(WINDOW) - WINDOW // 2) / WINDOW_STD) ** 2)
    bands = np.zeros((size - WINDOW + 1, size), np.float32)
    for i, row in enumerate(bands):
        row[i : i + WINDOW] = weights / weights.sum()
    return bands


def psnr(y: Pixels, x: Pixels) -> Float[Array, " b"]:
    """Peak signal-to-noise ratio of every sample in dB, 10 log10(range^2 / mean squared error); at most 100."""
    mean_square = jnp.mean(jnp.square(y - x), axis=(1, 2, 3, 4))
    return 10.0 * jnp.log10(PIXEL_RANGE**2 / jnp.maximum(mean_square, PIXEL_RANGE**2 * 1e-10))


def latent_statistics(
    network: Autoencoder, params: Params, batches: Iterable[Pixels]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of every latent channel of z ~ q(z | x) over batches of pixels.

    They are the `latents_mean` and `latents_std` that make normalised latents zero-mean and unit-variance:
    `dataclasses.replace(vae, latents_mean=mean, latents_std=std)`. Var z = Var mean + E exp(logvar), so q's own counts.

    Raises:
        ValueError: there are no batches.
    """
    encode = jax.jit(network.encode)
    count, first, second = 0, np.zeros(()), np.zeros(())
    for pixels in batches:
        mean, logvar = (np.asarray(moment, np.float64) for moment in encode(params, pixels))
        count += math.prod(mean.shape[:-1])
        first = first + mean.sum(axis=(0, 1, 2, 3))
        second = second + (mean**2 + np.exp(logvar)).sum(axis=(0, 1, 2, 3))
    if not count:
        raise ValueError("latent_statistics got no batches: give an iterable of at least one array of pixels")
    center = first / count
    std = np.sqrt(second / count - center**2)
    return tuple(center.tolist()), tuple(std.tolist())
