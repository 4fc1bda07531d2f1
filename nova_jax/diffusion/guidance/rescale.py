"""Rescaled guidance: the spread of the conditional answer, kept (Lin et al. 2023, arXiv 2305.08891, section 3.4).

    g        = u + w (c - u)                        classifier-free guidance
    rescaled = g std(c) / std(g)                    std over all elements of a sample
    answer   = phi rescaled + (1 - phi) g

A large w raises the spread of the answer and overexposes the image; phi = 0.7 takes most of it back. A spread depends
on what is predicted. The paper rescales the network's output, so the kind is an argument; velocity is that of flow
models.
"""

import jax.numpy as jnp
from jaxtyping import Array

from nova_jax.diffusion import conditioning, prediction, schedules
from nova_jax.diffusion.guidance import pair
from nova_jax.types import Denoiser


def rescaled(
    denoiser: Denoiser,
    scale: pair.Scale,
    null: pair.Null = conditioning.null,
    *,
    schedule: schedules.Schedule,
    amount: float | int | Array = 0.7,
    kind: prediction.Kind = "velocity",
    interval: pair.Interval | None = None,
) -> Denoiser:
    """Classifier-free guidance brought back to the spread of the conditional answer. Costs two evaluations.

    Args:
        denoiser: the conditional model.
        scale: w, at least 0; 1, as a Python number, is the denoiser itself.
        null: what stands against the condition.
        schedule: that of the denoiser.
        amount: phi; 0 is plain guidance, 1 keeps the spread exactly.
        kind: the prediction whose spread is kept.
        interval: (low, high); at times t <= low or t > high only the condition is evaluated.

    Raises:
        ValueError: a negative scale, an amount outside [0, 1], an empty interval, an unknown kind.
    """
    pair.check_scale(scale)
    if isinstance(amount, (int, float)) and not 0 <= amount <= 1:
        raise ValueError(f"the amount of rescaling must lie in [0, 1], got {amount}")

    def combine(c: Array, u: Array) -> Array:
        g = pair.extrapolate(c, u, scale)
        ratio = jnp.sqrt(_variance(c) / jnp.maximum(_variance(g), jnp.finfo(g.dtype).tiny))
        return g * (1 - amount + amount * ratio)

    rule = pair.in_space(kind, schedule, combine)
    if pair.is_number(scale, 1):
        return denoiser
    answers, cost = pair.with_and_without(denoiser, null)
    return pair.guide(denoiser, answers, rule, cost, interval)


def _variance(x: Array) -> Array:
    return jnp.var(x, axis=tuple(range(1, x.ndim)), keepdims=True)
