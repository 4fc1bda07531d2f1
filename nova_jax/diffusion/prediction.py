"""What a network may predict, and how every kind becomes the pair (x0, eps).

At time t the pair and x_t = alpha x0 + sigma eps are tied by one line, so one more linear equation fixes both:

    kind       definition                    x0                                  eps
    x0         x0                            p                                   (x_t - alpha p) / sigma
    eps        eps                           (x_t - sigma p) / alpha             p
    v          alpha eps - sigma x0          (alpha x_t - sigma p) / c           (sigma x_t + alpha p) / c
    velocity   alpha' x0 + sigma' eps        (sigma' x_t - sigma p) / d          (alpha p - alpha' x_t) / d

with c = alpha^2 + sigma^2 and d = alpha sigma' - sigma alpha'. `v` and `velocity` have no singular time. Where `x0`
meets sigma = 0, x_t says nothing about the noise and eps is its mean, 0. Where `eps` meets alpha = 0, x_t says nothing
about the data and x0 is set to 0 as well, the mean of centred data: prefer `velocity` for a schedule that ends in pure
noise.

The four kinds are closed by mathematics, which is why they are strings and not classes. v: Salimans & Ho 2022 (arXiv
2202.00512); velocity: Lipman et al. 2022 (2210.02747).
"""

import typing
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.diffusion import schedules
from nova_jax.types import Denoised

Kind = Literal["x0", "eps", "v", "velocity"]


def right_pad(t: Array, x: Array) -> Array:
    """Gives times of shape (b,) or (b, f) trailing axes of size 1, to broadcast against x of shape (b, f, ...)."""
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def add_noise(
    x0: Float[Array, "b *dims"], eps: Float[Array, "b *dims"], t: Array, schedule: schedules.Schedule
) -> Float[Array, "b *dims"]:
    """x_t = alpha x0 + sigma eps, at one time per sample or per frame."""
    t = right_pad(t, x0)
    return schedule.alpha(t) * x0 + schedule.sigma(t) * eps


def denoised_from(
    kind: Kind,
    prediction: Float[Array, "b *dims"],
    x_t: Float[Array, "b *dims"],
    t: Array,
    schedule: schedules.Schedule,
) -> Denoised:
    """The pair (x0, eps) that a prediction of this kind means at x_t."""
    check(kind)
    t = right_pad(t, x_t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "x0":
        return Denoised(prediction, _divide(x_t - alpha * prediction, sigma))
    if kind == "eps":
        return Denoised(_divide(x_t - sigma * prediction, alpha), prediction)
    if kind == "v":
        c = alpha**2 + sigma**2
        return Denoised((alpha * x_t - sigma * prediction) / c, (sigma * x_t + alpha * prediction) / c)
    d_alpha, d_sigma = schedule.d_alpha(t), schedule.d_sigma(t)
    d = alpha * d_sigma - sigma * d_alpha
    return Denoised((d_sigma * x_t - sigma * prediction) / d, (alpha * prediction - d_alpha * x_t) / d)


def target_from(kind: Kind, denoised: Denoised, t: Array, schedule: schedules.Schedule) -> Float[Array, "b *dims"]:
    """The prediction of this kind that means this pair: the inverse of `denoised_from`, and the target in training."""
    check(kind)
    x0, eps = denoised
    t = right_pad(t, x0)
    if kind == "x0":
        return x0
    if kind == "eps":
        return eps
    if kind == "v":
        return schedule.alpha(t) * eps - schedule.sigma(t) * x0
    return schedule.d_alpha(t) * x0 + schedule.d_sigma(t) * eps


def error_factors(kind: Kind, t: Array, schedule: schedules.Schedule) -> tuple[Array, Array]:
    """How far x0 and eps are off, in absolute value, when a prediction of this kind is off by one.

    The first column of the table, differentiated: what turns a weight on the x0 error into one on the prediction's.
    """
    check(kind)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if kind == "x0":
        return jnp.ones_like(t), alpha / sigma
    if kind == "eps":
        return sigma / alpha, jnp.ones_like(t)
    if kind == "v":
        c = alpha**2 + sigma**2
        return sigma / c, alpha / c
    d = alpha * schedule.d_sigma(t) - sigma * schedule.d_alpha(t)
    return sigma / d, alpha / d


def check(kind: str) -> None:
    """Refuses a kind of prediction that does not exist.

    Raises:
        ValueError: naming the four that do.
    """
    if kind not in typing.get_args(Kind):
        raise ValueError(f"unknown prediction {kind!r}: use one of {', '.join(typing.get_args(Kind))}")


def _divide(numerator: Array, denominator: Array) -> Array:
    """The quotient, and 0 where the denominator is 0; finite gradients in both cases."""
    is_zero = denominator == 0
    return jnp.where(is_zero, 0, numerator / jnp.where(is_zero, 1, denominator))
