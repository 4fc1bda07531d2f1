"""What the rules between two answers share: a strong answer, a weak one, and the times at which they are compared.

    D(x, t, c) = rule(strong, weak)   for low < t <= high,      strong   at all other times

The interval is that of Kynkäänniemi et al. 2024 (arXiv 2404.07724), in time instead of noise level: guidance
harms variety at high noise and changes nothing at low noise, where leaving it out also saves half of the cost.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from nova_jax.diffusion import conditioning, prediction, schedules
from nova_jax.diffusion import denoiser as denoisers
from nova_jax.types import Denoised, Denoiser

Scale = float | int | Array  # one, or one per sample
Null = Callable[[Any], Any]
Interval = tuple[float | int | Array, float | int | Array]
Answers = Callable[[Array, Array, Any], tuple[Denoised, Denoised]]
Rule = Callable[[Denoised, Denoised, Array, Array], Denoised]


def guide(
    denoiser: Denoiser, answers: Answers, rule: Rule, cost: denoisers.Cost, interval: Interval | None
) -> Denoiser:
    """The denoiser that applies `rule(strong, weak, x, t)` inside the interval and is `denoiser` outside it.

    Args:
        denoiser: gives the strong answer alone.
        answers: the strong and the weak answer.
        rule: what to make of them.
        cost: that of `answers`.
        interval: None is every time.

    Raises:
        ValueError: an interval of Python numbers that is empty or leaves [0, 1].
    """
    if interval is None:
        return denoisers.declare(lambda x, t, cond: rule(*answers(x, t, cond), x, t), cost)
    _check_interval(interval)

    def denoise(x: Array, t: Array, cond: Any) -> Denoised:
        inside = _is_inside(t, interval)

        def guided() -> Denoised:
            strong, weak = answers(x, t, cond)
            chosen = prediction.right_pad(inside, x)  # the samples of one batch may stand at different times
            keep = rule(strong, weak, x, t)
            return jax.tree.map(lambda new, old: jnp.where(chosen, new.astype(old.dtype), old), keep, strong)

        return jax.lax.cond(jnp.any(inside), guided, lambda: denoiser(x, t, cond))

    def cost_at(t: Array) -> Array:
        return jnp.where(_is_inside(t, interval), cost(t), denoisers.evaluations(denoiser, t))

    return denoisers.declare(denoise, cost_at)


def with_and_without(denoiser: Denoiser, null: Null) -> tuple[Answers, denoisers.Cost]:
    """The answers to `cond` and to `null(cond)`, from one call on a batch twice as large, and what they cost."""

    def answers(x: Array, t: Array, cond: Any) -> tuple[Denoised, Denoised]:
        both = denoiser(*conditioning.interleave((x, t, cond), (x, t, null(cond))))
        strong, weak = conditioning.split(both, 2)
        return strong, weak

    return answers, lambda t: 2 * denoisers.evaluations(denoiser, t)


def in_space(kind: prediction.Kind, schedule: schedules.Schedule, combine: Callable[[Array, Array], Array]) -> Rule:
    """The rule that combines two predictions of this kind. Only a linear rule is the same for every kind."""
    prediction.check(kind)

    def rule(strong: Denoised, weak: Denoised, x: Array, t: Array) -> Denoised:
        both = (prediction.target_from(kind, answer, t, schedule) for answer in (strong, weak))
        return prediction.denoised_from(kind, combine(*both), x, t, schedule)

    return rule


def extrapolate(strong: Array, weak: Array, scale: Scale) -> Array:
    """The line from weak through strong at `scale`: weak + scale (strong - weak), with one scale or one per sample."""
    return weak + per_sample(scale, strong) * (strong - weak)


def per_sample(value: Scale, x: Array) -> Any:
    """A scalar as it is; one value per sample with trailing axes to broadcast against x."""
    return prediction.right_pad(jnp.asarray(value, x.dtype), x) if jnp.ndim(value) else value


def dot(a: Array, b: Array) -> Array:
    """The inner product of each sample, with axes of size 1 to broadcast against it."""
    return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def is_number(scale: Scale, number: int) -> bool:
    """Whether the scale is known to be this number while tracing."""
    return isinstance(scale, (int, float)) and scale == number


def check_scale(scale: Scale) -> None:
    """Refuses a Python number that is no guidance scale.

    Raises:
        ValueError: it is negative or NaN.
    """
    if isinstance(scale, (int, float)) and not scale >= 0:
        raise ValueError(
            f"a guidance scale must be at least 0, got {scale}: 0 ignores the condition, 1 is the conditional model "
            "and more than 1 exaggerates the condition; to move away from a prompt, pass it as a negative"
        )


def _is_inside(t: Array, interval: Interval) -> Bool[Array, "*dims"]:
    low, high = interval
    return (t > low) & (t <= high)


def _check_interval(interval: Interval) -> None:
    low, high = interval
    if isinstance(low, (int, float)) and isinstance(high, (int, float)) and not 0 <= low < high <= 1:
        raise ValueError(f"a guidance interval is (low, high) with 0 <= low < high <= 1, got ({low}, {high})")
