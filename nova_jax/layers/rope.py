"""Rotary position embedding over frames, rows and columns.

Each pair of adjacent channels (x_2i, x_2i+1) of a head is rotated by the angle p theta^(-2i/D), so the product of a
query at position p and a key at p' depends on p - p' alone. The channels q of a head are shared out over the three
axes, as in Wan (Wan Team 2025, arXiv:2503.20314): D_h = D_w = 2 (q // 6), D_t = q - D_h - D_w; for q = 128: 44 frames,
42 rows, 42 columns.

Su et al. 2021, RoFormer, arXiv:2104.09864, equation 34.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from nova_jax.parallel.constrain import constrain


class Rotation(NamedTuple):
    """The angle of every pair of channels at every token."""

    cos: Float[Array, "n p"]
    sin: Float[Array, "n p"]


def split_axes(head_dim: int) -> tuple[int, int, int]:
    """Channels of one head given to frames, rows and columns."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def angles(positions: np.ndarray, dim: int, theta: float) -> np.ndarray:
    """Angles (len(positions), dim / 2) of one axis, in float64: at 10^3 frames float32 angles are off by 1e-4."""
    return np.outer(positions, theta ** (-np.arange(0, dim, 2, dtype=np.float64) / dim))


def grid_rotation(
    frames: np.ndarray,
    height: int,
    width: int,
    head_dim: int,
    theta: float = 10_000.0,
    slots: np.ndarray | None = None,
) -> Rotation:
    """The rotation of tokens laid out frame by frame, row by row.

    Args:
        frames: position of each frame on the time axis; any integers, in any order.
        height: rows of tokens in a frame.
        width: columns of tokens in a frame.
        head_dim: channels of a head; even.
        theta: base of the frequencies.
        slots: which token lies where, if in another order (`parallel.context.slots`); -1, none, turns like the first.
    """
    grid = (len(frames), height, width)
    positions = (np.asarray(frames), np.arange(height), np.arange(width))
    per_axis = [angles(p, dim, theta) for p, dim in zip(positions, split_axes(head_dim), strict=True)]

    if slots is not None:
        places = np.unravel_index(np.maximum(slots, 0), grid)

        def look_up(f: np.ufunc) -> Array:
            tables = [jnp.asarray(f(angle), jnp.float32)[place] for angle, place in zip(per_axis, places, strict=True)]
            return constrain(jnp.concatenate(tables, axis=-1), "tokens", None)

        return Rotation(look_up(np.cos), look_up(np.sin))

    def spread(f: np.ufunc) -> Array:
        parts = []  # small constants per axis, spread over the grid on the device
        for axis, angle in enumerate(per_axis):
            shape = [1, 1, 1, angle.shape[-1]]
            shape[axis] = len(angle)
            table = jnp.asarray(f(angle), jnp.float32).reshape(shape)
            parts.append(jnp.broadcast_to(table, (*grid, angle.shape[-1])))
        return jnp.concatenate(parts, axis=-1).reshape(-1, head_dim // 2)

    return Rotation(spread(np.cos), spread(np.sin))


def rotate(x: Float[Array, "b n k q"], rotation: Rotation) -> Float[Array, "b n k q"]:
    """Rotates each pair of channels of x; computed in float32, returned in the dtype of x.

    (x_2i, x_2i+1) cos + (x_2i+1, x_2i) (-sin, sin): one pass, and its derivative another of the same kind.
    """
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    cos, sin = (a[None, :, None, :, None] for a in rotation)
    cos, sin = (jnp.broadcast_to(a, pairs.shape) for a in (cos, jnp.concatenate([-sin, sin], axis=-1)))
    turned = pairs * cos + pairs[..., ::-1] * sin
    return turned.reshape(x.shape).astype(x.dtype)
