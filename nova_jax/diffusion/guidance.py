"""Guidance: denoisers that look at what the condition changes, and do more of it.

    D_w(x, t, c) = D(x, t, null) + w (D(x, t, c) - D(x, t, null))          Ho & Salimans 2022 (arXiv 2207.12598)

w = 0 ignores the condition, w = 1 is the plain conditional model, w > 1 trades variety for agreement with the
condition. (The paper's own w is one less.) At given x_t every prediction kind is an affine function of (x0, eps), so
the formula is the same whichever of them it is applied to; here it is applied to the pair.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nova_jax.diffusion import conditioning, prediction
from nova_jax.diffusion import denoiser as denoisers
from nova_jax.types import Denoised, Denoiser


def classifier_free(
    denoiser: Denoiser, scale: float | int | Array, null: Callable[[Any], Any] = conditioning.null
) -> Denoiser:
    """Guides a denoiser away from its answer to `null(cond)`.

    Both answers come from one call on a batch twice as large, and count as two evaluations. A scale given as the Python
    number 1 or 0 needs only one of them, and costs one. A traced scale, scalar or one per sample, never recompiles.
    """
    if isinstance(scale, (int, float)) and scale == 1:
        return denoiser
    if isinstance(scale, (int, float)) and scale == 0:
        return denoisers.declare(
            lambda x, t, cond: denoiser(x, t, null(cond)), lambda t: denoisers.evaluations(denoiser, t)
        )

    def denoise(x: Array, t: Array, cond: Any) -> Denoised:
        both = denoiser(*conditioning.interleave((x, t, cond), (x, t, null(cond))))
        with_cond, without = conditioning.split(both, 2)
        weight = prediction.right_pad(jnp.asarray(scale, x.dtype), x) if jnp.ndim(scale) else scale
        return jax.tree.map(lambda c, u: u + weight * (c - u), with_cond, without)

    return denoisers.declare(denoise, lambda t: 2 * denoisers.evaluations(denoiser, t))
