"""CFG-Zero*: guidance for flow models whose velocity is not yet exact (Fan et al. 2025, arXiv 2503.18886).

    s      = <v_c, v_u> / |v_u|^2                    per sample: v_u at the length that fits v_c best
    answer = s v_u + w (v_c - s v_u)                 `zero_star`
    answer = 0                          for t > t0   `zero_init`: at first, standing still beats a guess

The two halves of the method are two wrappers: `zero_init(zero_star(denoiser, scale, schedule=s), schedule=s)`. The
paper counts the steps that stand still; here they are those that start above a time.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nova_jax.diffusion import conditioning, prediction, schedules
from nova_jax.diffusion import denoiser as denoisers
from nova_jax.diffusion.guidance import pair
from nova_jax.types import Denoised, Denoiser


def zero_star(
    denoiser: Denoiser,
    scale: pair.Scale,
    null: pair.Null = conditioning.null,
    *,
    schedule: schedules.Schedule,
    interval: pair.Interval | None = None,
) -> Denoiser:
    """Classifier-free guidance with the unconditional velocity at its best-fitting length. Costs two evaluations.

    Args:
        denoiser: the conditional model.
        scale: w, at least 0; 1, as a Python number, is the denoiser itself.
        null: what stands against the condition.
        schedule: that of the denoiser.
        interval: (low, high); at times t <= low or t > high only the condition is evaluated.

    Raises:
        ValueError: a negative scale; an empty interval.
    """
    pair.check_scale(scale)
    if pair.is_number(scale, 1):
        return denoiser

    def combine(c: Array, u: Array) -> Array:
        length = pair.dot(u, u)
        fitted = pair.dot(c, u) / jnp.where(length == 0, 1, length) * u
        return pair.extrapolate(c, fitted, scale)

    answers, cost = pair.with_and_without(denoiser, null)
    return pair.guide(denoiser, answers, pair.in_space("velocity", schedule, combine), cost, interval)


def zero_init(denoiser: Denoiser, *, schedule: schedules.Schedule, above: float | int | Array = 0.96) -> Denoiser:
    """Stands still, without an evaluation, at times above `above`: the velocity there is 0.

    The default stands still for the first 4 % of the way. With a coarse grid mind that the whole first step
    stands still, however long it is.

    Raises:
        ValueError: a Python number outside [0, 1].
    """
    if isinstance(above, (int, float)) and not 0 <= above <= 1:
        raise ValueError(f"zero_init stands still above a time in [0, 1], got {above}")

    def denoise(x: Array, t: Array, cond: Any) -> Denoised:
        rest = prediction.denoised_from("velocity", jnp.zeros_like(x), x, t, schedule)
        kinds = jax.eval_shape(denoiser, x, t, cond)
        rest = jax.tree.map(lambda a, kind: a.astype(kind.dtype), rest, kinds)
        is_still = t > above

        def move() -> Denoised:
            chosen = prediction.right_pad(is_still, x)
            return jax.tree.map(lambda a, b: jnp.where(chosen, a, b), rest, denoiser(x, t, cond))

        return jax.lax.cond(jnp.all(is_still), lambda: rest, move)

    return denoisers.declare(denoise, lambda t: jnp.where(t > above, 0, denoisers.evaluations(denoiser, t)))
