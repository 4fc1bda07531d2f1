"""Autoguidance: a denoiser led away from the mistakes of a weaker one (Karras et al. 2024, arXiv 2406.02507).

    D = D_weak(x, t, c) + w (D(x, t, c) - D_weak(x, t, c))

The weak network is a smaller or less trained version of the strong one and sees the same condition, so what is
exaggerated is quality, not agreement with the condition: variety stays.
"""

from typing import Any

import jax
from jaxtyping import Array

from nova_jax.diffusion import denoiser as denoisers
from nova_jax.diffusion.guidance import pair
from nova_jax.types import Denoised, Denoiser


def autoguidance(
    denoiser: Denoiser, weak: Denoiser, scale: pair.Scale, *, interval: pair.Interval | None = None
) -> Denoiser:
    """Guides a denoiser away from a weaker one.

    Costs one evaluation of each, whatever their sizes: `denoiser.declare` the weak one's cost to count it otherwise. A
    scale given as the Python number 1 or 0 needs only one of them.

    Args:
        denoiser: the strong denoiser.
        weak: the weak one, of the same schedule.
        scale: w, at least 0; scalar or one per sample.
        interval: (low, high); at times t <= low or t > high only the strong denoiser is evaluated.

    Raises:
        ValueError: a negative scale; an empty interval.
    """
    pair.check_scale(scale)
    if pair.is_number(scale, 1):
        return denoiser
    if pair.is_number(scale, 0) and interval is None:
        return weak

    def answers(x: Array, t: Array, cond: Any) -> tuple[Denoised, Denoised]:
        return denoiser(x, t, cond), weak(x, t, cond)

    def rule(strong: Denoised, poor: Denoised, x: Array, t: Array) -> Denoised:
        return jax.tree.map(lambda c, u: pair.extrapolate(c, u, scale), strong, poor)

    def cost(t: Array) -> Array:
        return denoisers.evaluations(denoiser, t) + denoisers.evaluations(weak, t)

    return pair.guide(denoiser, answers, rule, cost, interval)
