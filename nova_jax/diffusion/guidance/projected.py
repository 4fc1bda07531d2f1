"""Adaptive projected guidance, APG: guidance without oversaturation (Sadat et al. 2024, arXiv 2410.02416, section 4).

    d      = (c - u) min(1, r / |c - u|)                            |.| over all elements of a sample
    d      = d_parallel + d_orthogonal                              to c
    answer = c + (w - 1) (d_orthogonal + eta d_parallel)

The part of the difference parallel to the conditional answer mostly raises contrast and saturation; eta = 0 leaves it
out, eta = 1 without a threshold r is classifier-free guidance. The paper does this on the prediction of x0. (Some
implementations write u + w (d_orthogonal + eta d_parallel), on whatever the network predicts; this is their answer with
their eta replaced by (w eta - 1) / (w - 1).)

Left out: the paper's reverse momentum, an average of d over the steps already taken. It is a memory, and a denoiser has
none.
"""

import jax.numpy as jnp
from jaxtyping import Array

from nova_jax.diffusion import conditioning, prediction, schedules
from nova_jax.diffusion.guidance import pair
from nova_jax.types import Denoiser


def adaptive_projected(
    denoiser: Denoiser,
    scale: pair.Scale,
    null: pair.Null = conditioning.null,
    *,
    schedule: schedules.Schedule,
    eta: float | int | Array = 0.0,
    max_norm: float | int | Array | None = None,
    kind: prediction.Kind = "x0",
    interval: pair.Interval | None = None,
) -> Denoiser:
    """Classifier-free guidance with the part parallel to the conditional answer damped. Costs two evaluations.

    Args:
        denoiser: the conditional model.
        scale: w, at least 0; 1, as a Python number, is the denoiser itself.
        null: what stands against the condition.
        schedule: that of the denoiser.
        eta: the share of the parallel part that stays.
        max_norm: r, the length to which longer differences are cut; None cuts none.
        kind: the prediction that is split.
        interval: (low, high); at times t <= low or t > high only the condition is evaluated.

    Raises:
        ValueError: a negative scale, a threshold not above 0, an empty interval, an unknown kind.
    """
    pair.check_scale(scale)
    if isinstance(max_norm, (int, float)) and not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, or None for no threshold, got {max_norm}")

    def combine(c: Array, u: Array) -> Array:
        difference = c - u
        if max_norm is not None:
            squared = pair.dot(difference, difference)
            is_long = squared > max_norm**2
            difference = difference * jnp.where(is_long, max_norm / jnp.sqrt(jnp.where(is_long, squared, 1)), 1)
        length = pair.dot(c, c)
        parallel = pair.dot(difference, c) / jnp.where(length == 0, 1, length) * c
        return c + (pair.per_sample(scale, c) - 1) * (difference - parallel + eta * parallel)

    rule = pair.in_space(kind, schedule, combine)
    if pair.is_number(scale, 1):
        return denoiser
    answers, cost = pair.with_and_without(denoiser, null)
    return pair.guide(denoiser, answers, rule, cost, interval)
