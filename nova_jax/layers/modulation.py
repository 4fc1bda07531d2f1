"""Adaptive layer norm: what the network is told about time, applied to tokens.

    h = LN(x) (1 + scale) + shift          x <- x + gate * f(h)

The shift, scale and gate of a layer are a learned table plus one vector shared by all layers (adaLN-single; Chen et
al. 2023, PixArt-alpha, arXiv:2310.00426). They belong to a sample, or to each of its m frames when these have their
own times, and reach the n / m tokens of a frame by broadcasting. Tokens that the mesh cuts are not equal parts in
order; `token_frames` says to which frame each belongs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.layers import norms
from nova_jax.parallel import context
from nova_jax.parallel.constrain import constrain

PerFrame = Float[Array, "b m d"]
Membership = Float[Array, "n m"] | None  # 1 where token n belongs to frame m; None: to each n / m in turn


def token_frames(frames: tuple[int, ...], tokens_per_frame: int) -> Membership:
    """The frames of tokens that are cut in parts of so many frames; None where the mesh does not cut tokens."""
    if context.size() == 1:
        return None
    slots = context.slots(*(count * tokens_per_frame for count in frames))
    return constrain(jax.nn.one_hot(slots // tokens_per_frame, sum(frames)), "tokens", None)


def per_token(rows: PerFrame, n: int, frames: Membership = None) -> Float[Array, "b n d"]:
    """The row of each token's frame."""
    b, m, d = rows.shape
    if frames is None or m == 1:
        return jnp.broadcast_to(rows[:, :, None], (b, m, n // m, d)).reshape(b, n, d)
    # A product, since the transpose of a lookup adds in no fixed order on a GPU; a sum of one term is exact.
    spread = jnp.einsum("nm,bmd->bnd", frames.astype(rows.dtype), rows, precision=jax.lax.Precision.HIGHEST)
    return constrain(spread, "batch", "tokens", "width")


def modulate(
    x: Float[Array, "b n d"], shift: PerFrame, scale: PerFrame, eps: float, frames: Membership = None
) -> Float[Array, "b n d"]:
    """LN(x) (1 + scale) + shift, computed in float32 and returned in the dtype of x."""
    h, shift, scale = _align(norms.standardize(x, eps), shift, scale, frames=frames)
    return (h * (1 + scale) + shift).reshape(x.shape).astype(x.dtype)


def add_gated(
    x: Float[Array, "b n d"], y: Float[Array, "b n d"], gate: PerFrame, frames: Membership = None
) -> Float[Array, "b n d"]:
    """Adds gate * y to x, computed in float32 and returned in the dtype of x."""
    y, gate = _align(y.astype(jnp.float32), gate, frames=frames)
    return (x.astype(jnp.float32) + (y * gate).reshape(x.shape)).astype(x.dtype)


def _align(x: Float[Array, "b n d"], *rows: PerFrame, frames: Membership) -> tuple[Array, ...]:
    """Tokens, and the row of each in a shape that broadcasts with them."""
    if frames is not None:
        return x, *(per_token(row, x.shape[1], frames) for row in rows)
    b, n, d = x.shape
    m = rows[0].shape[1]
    return x.reshape(b, m, n // m, d), *(row[:, :, None] for row in rows)
