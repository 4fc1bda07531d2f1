"""Adaptive layer norm: what the network is told about time, applied to tokens.

    h = LN(x) (1 + scale) + shift          x <- x + gate * f(h)

The shift, scale and gate of a layer are a learned table plus one vector shared by all layers (adaLN-single; Chen et
al. 2023, PixArt-alpha, arXiv:2310.00426). They belong to a sample, or to each of its m frames when these have their
own times, and reach the n / m tokens of a frame by broadcasting: they are never stored per token.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

PerFrame = Float[Array, "b m d"]


def standardize(x: Float[Array, "b n d"], eps: float) -> Float[Array, "b n d"]:
    """LN(x) without gain and bias, in float32."""
    x = x.astype(jnp.float32)
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)


def modulate(x: Float[Array, "b n d"], shift: PerFrame, scale: PerFrame, eps: float) -> Float[Array, "b n d"]:
    """LN(x) (1 + scale) + shift, computed in float32 and returned in the dtype of x."""
    b, n, d = x.shape
    h = standardize(x, eps).reshape(b, shift.shape[1], -1, d)
    return (h * (1 + scale[:, :, None]) + shift[:, :, None]).reshape(b, n, d).astype(x.dtype)


def add_gated(x: Float[Array, "b n d"], y: Float[Array, "b n d"], gate: PerFrame) -> Float[Array, "b n d"]:
    """Adds gate * y to x, computed in float32 and returned in the dtype of x."""
    b, n, d = x.shape
    frames = (b, gate.shape[1], n // gate.shape[1], d)
    gated = y.astype(jnp.float32).reshape(frames) * gate[:, :, None]
    return (x.astype(jnp.float32) + gated.reshape(b, n, d)).astype(x.dtype)
