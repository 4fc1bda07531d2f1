"""Guidance that is a weighted sum of answers: one condition, several, or one against another.

    (1)  D = D(null) + w (D(c) - D(null))                              Ho & Salimans 2022 (arXiv 2207.12598)
    (2)  D = D_0 + sum_i w_i (D_i - D_(i-1))                           Brooks et al. 2022, InstructPix2Pix (2211.09800)
    (3)  D = D(null) + sum_i w_i (D(c_i) - D(null))                    Liu et al. 2022 (2206.01714)

In (1), w = 0 ignores the condition, w = 1 is the plain conditional model, w > 1 trades variety for agreement with the
condition. (The paper's own w is one less.) A negative prompt is another condition in the place of null. In (2) the
conditions join one after the other: D_0 sees none, D_n all of them; InstructPix2Pix adds first the image, then the
text (its eq. 3). In (3) they stand side by side.

At given x_t every prediction kind is an affine function of (x0, eps) and the weights of the answers sum to one, so the
formulas are the same whichever of them they are applied to; here they are applied to the pair.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from nova_jax.diffusion import conditioning
from nova_jax.diffusion import denoiser as denoisers
from nova_jax.diffusion.guidance import pair
from nova_jax.types import Denoised, Denoiser


def classifier_free(
    denoiser: Denoiser, scale: pair.Scale, null: pair.Null = conditioning.null, *, interval: pair.Interval | None = None
) -> Denoiser:
    """Guides a denoiser away from its answer to `null(cond)`, by (1).

    Both answers come from one call on a batch twice as large, and count as two evaluations. A scale given as the Python
    number 1 or 0 needs only one of them, and costs one. A traced scale, scalar or one per sample, never recompiles.

    Args:
        denoiser: the conditional model.
        scale: w, at least 0.
        null: what stands against the condition; see `negative` for a negative prompt.
        interval: (low, high); at times t <= low or t > high only the condition is evaluated.

    Raises:
        ValueError: a negative scale; an empty interval.
    """
    pair.check_scale(scale)
    if pair.is_number(scale, 1):
        return denoiser
    if pair.is_number(scale, 0) and interval is None:
        return denoisers.declare(
            lambda x, t, cond: denoiser(x, t, null(cond)), lambda t: denoisers.evaluations(denoiser, t)
        )

    def rule(strong: Denoised, weak: Denoised, x: Array, t: Array) -> Denoised:
        return jax.tree.map(lambda c, u: pair.extrapolate(c, u, scale), strong, weak)

    answers, cost = pair.with_and_without(denoiser, null)
    return pair.guide(denoiser, answers, rule, cost, interval)


def negative(cond: Any) -> pair.Null:
    """A null function whose answer is always this condition: a negative prompt.

    A condition of one row serves every sample of a batch.
    """

    def instead(positive: Any) -> Any:
        rows = jax.tree.leaves(positive)[0].shape[0]
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])), cond)

    return instead


def chained(denoiser: Denoiser, scales: Sequence[pair.Scale], nulls: Sequence[pair.Null]) -> Denoiser:
    """Guides by several conditions that join one after the other, by (2).

    `nulls[i]` makes the condition of D_i, the emptiest first; D_n sees the whole condition. `scales[i]` strengthens
    what D_(i+1) adds to D_i. All n + 1 answers come from one call. Equal neighbouring scales given as Python numbers
    need no answer between them, and scales of 1 cost one evaluation.

    Example, an image to edit (weight 1.5) and a text (weight 7):
        keep_image = functools.partial(conditioning.null, parts=("text",))
        chained(denoiser, [1.5, 7.0], [conditioning.null, keep_image])

    Raises:
        ValueError: a negative scale, or not one scale for each null.
    """
    _check_counts(scales, nulls, "null")
    steps: list[Any] = [
        1,
        *scales,
        0,
    ]  # (2) as a weighted sum: D_i is added with w_i and subtracted with w_(i+1); w_0 = 1
    weights = [steps[i] - steps[i + 1] for i in range(len(scales) + 1)]
    return _weighted_sum(denoiser, weights, [*nulls, lambda cond: cond])


def composed(
    denoiser: Denoiser,
    scales: Sequence[pair.Scale],
    conditions: Sequence[pair.Null],
    null: pair.Null = conditioning.null,
) -> Denoiser:
    """Guides by several conditions side by side, by (3).

    `conditions[i]` makes c_i from the condition handed to the denoiser. All n + 1 answers come from one call; Python
    numbers 0 leave their condition out.

    Raises:
        ValueError: a negative scale, or not one scale for each condition.
    """
    _check_counts(scales, conditions, "condition")
    rest: Any = 1
    for scale in scales:
        rest = rest - scale
    return _weighted_sum(denoiser, [rest, *scales], [null, *conditions])


def _weighted_sum(denoiser: Denoiser, weights: Sequence[pair.Scale], variants: Sequence[pair.Null]) -> Denoiser:
    """sum_i weights[i] D(variants[i](cond)), in one call, without the answers whose weight is known to be 0."""
    needed = [(w, variant) for w, variant in zip(weights, variants, strict=True) if not pair.is_number(w, 0)]
    count = len(needed)

    def denoise(x: Array, t: Array, cond: Any) -> Denoised:
        stacked = conditioning.interleave(*((x, t, variant(cond)) for _, variant in needed))
        answers = conditioning.split(denoiser(*stacked), count)
        if count == 1:
            return answers[0]
        terms = zip((w for w, _ in needed), answers, strict=True)
        scaled = [jax.tree.map(lambda a, w=w: pair.per_sample(w, a) * a, answer) for w, answer in terms]
        return jax.tree.map(lambda *parts: sum(parts), *scaled)

    return denoisers.declare(denoise, lambda t: count * denoisers.evaluations(denoiser, t))


def _check_counts(scales: Sequence[pair.Scale], makers: Sequence[pair.Null], what: str) -> None:
    if not scales or len(scales) != len(makers):
        raise ValueError(f"pass one scale for each {what}: got {len(scales)} scales and {len(makers)} {what}s")
    for scale in scales:
        pair.check_scale(scale)
