"""Scalars to features, features to width, and latents to tokens and back."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nova_jax.layers import linear
from nova_jax.parallel import context


def timestep_features(t: Float[Array, "*batch"], dim: int, max_period: float = 10_000.0) -> Float[Array, "*batch dim"]:
    """Sinusoids of t with wavelengths from 2 pi to 2 pi max_period: [cos(t w_0), .., sin(t w_0), ..].

    Ho et al. 2020, arXiv 2006.11239, with the cosines first.
    """
    if dim % 2:
        raise ValueError(f"timestep features come in pairs of cosine and sine; {dim} is odd")
    frequencies = np.exp(-np.log(max_period) * np.arange(dim // 2) / (dim // 2)).astype(np.float32)
    angle = t.astype(jnp.float32)[..., None] * frequencies.reshape((1,) * t.ndim + (-1,))
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def grid_features(height: int, width: int, num_octaves: int = 3) -> Float[np.ndarray, "h w p"]:
    """Where each place of a grid lies: its row and column as u in (-1, 1), and cos, sin of pi u / 2, pi u, 2 pi u, ..

    They say the same of the same part of the image at any size of the grid.
    """
    rows, columns = ((2 * np.arange(n) + 1) / n - 1 for n in (height, width))
    places = np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1)
    angles = (places[..., None] * np.pi * 2.0 ** np.arange(-1, num_octaves - 1)).reshape(height, width, -1)
    return np.concatenate([places, np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


class Embedder(nn.Module):
    """Two linear layers that lift features to the width of the network."""

    features: int
    activation: Callable[[Array], Array] = jax.nn.silu
    out_init: nn.initializers.Initializer = nn.initializers.normal(0.02)
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch d"]:
        """Returns W_out activation(W_in x)."""
        init = nn.initializers.normal(0.02)
        hidden = linear.Dense(self.features, kernel_init=init, dtype=self.dtype, name="in")(x)
        return linear.Dense(self.features, kernel_init=self.out_init, dtype=self.dtype, name="out")(
            self.activation(hidden)
        )


def patchify(x: Float[Array, "b f h w c"], patch_size: tuple[int, int, int]) -> Float[Array, "b F H W p"]:
    """Cuts latents into patches: one token per patch, its (frame, row, column, channel) entries as features.

    Raises:
        ValueError: the patch size does not divide the latents.
    """
    b, f, h, w, c = x.shape
    pf, ph, pw = patch_size
    if f % pf or h % ph or w % pw:
        raise ValueError(
            f"latents of {f} x {h} x {w} cannot be cut into patches of {pf} x {ph} x {pw}: pad or resize them"
        )
    x = x.reshape(b, f // pf, pf, h // ph, ph, w // pw, pw, c)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(b, f // pf, h // ph, w // pw, pf * ph * pw * c)


def to_tokens(patches: Float[Array, "b F H W p"]) -> Float[Array, "b n p"]:
    """Patches frame by frame and row by row, cut over the devices that share a sample (`parallel.context`)."""
    b, f, h, w, p = patches.shape
    return context.cut(patches.reshape(b, f * h * w, p))


def unpatchify(tokens: Float[Array, "b F H W p"], patch_size: tuple[int, int, int]) -> Float[Array, "b f h w c"]:
    """Puts patches back in place: the inverse of `patchify`."""
    b, f, h, w, _ = tokens.shape
    pf, ph, pw = patch_size
    x = tokens.reshape(b, f, h, w, pf, ph, pw, -1)
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(b, f * pf, h * ph, w * pw, -1)
