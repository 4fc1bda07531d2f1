"""Arithmetic of exponential integrators: steps in lambda = log(alpha / sigma), exact at both ends of time.

With h = lambda' - lambda, the probability flow between two times is, in terms of either answer of the denoiser,

    (1)  x' = (sigma'/sigma) x + alpha' int_0^1 h e^(-(1 - theta) h) x0(theta) dtheta
    (2)  x' = (alpha'/alpha) x - sigma' int_0^1 h e^(+(1 - theta) h) eps(theta) dtheta

For a constant answer both are the first-order step  x' = alpha' x0 + sigma' eps,  which has no singular end. Higher
orders add the moments  int_0^1 h e^(z (1 - theta)) theta^k dtheta = h k! phi_(k+1)(z),  z = -h or h, in terms of

    (3)  phi_1(z) = (e^z - 1) / z,    phi_(k+1)(z) = (phi_k(z) - 1/k!) / z

(Hochbruck & Ostermann 2010, Exponential integrators; Lu et al. 2022, arXiv 2211.01095.)
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.diffusion import schedules
from nova_jax.types import Denoised

SERIES_TERMS = 18  # of phi near 0: below 1e-16 for |z| <= 1


def half_logsnr(schedule: schedules.Schedule, t: Float[Array, ""]) -> Float[Array, ""]:
    """lambda(t) = log(alpha / sigma); -inf at pure noise and +inf at clean data, with derivative 0 there."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    inside = (alpha > 0) & (sigma > 0)
    value = jnp.log(jnp.where(inside, alpha, 1)) - jnp.log(jnp.where(inside, sigma, 1))
    return jnp.where(inside, value, jnp.where(sigma > 0, -jnp.inf, jnp.inf))


def first_order(denoised: Denoised, schedule: schedules.Schedule, t_next: Float[Array, ""]) -> Float[Array, "b *dims"]:
    """The exact step for a denoiser whose answer stays what it is."""
    return schedule.alpha(t_next) * denoised.x0 + schedule.sigma(t_next) * denoised.eps


def phi(order: int, z: Float[Array, ""]) -> Float[Array, ""]:
    """The function phi_order of (3), order >= 1; accurate to rounding for every finite z."""
    small = jnp.abs(z) <= 1
    near, far = jnp.where(small, z, 0), jnp.where(small, 1, z)
    series = jnp.zeros_like(near)
    for n in reversed(range(SERIES_TERMS)):
        series = series * near + 1 / math.factorial(n + order)
    value = jnp.expm1(far) / far
    for k in range(1, order):
        value = (value - 1 / math.factorial(k)) / far
    return jnp.where(small, series, value)


def moments(h: Float[Array, ""], sign: int = -1) -> tuple[Array, Array, Array]:
    """The integrals of theta, theta^2 and theta^3 against the weight of (1), sign = -1, or of (2), sign = 1.

    An infinite h, where only the first order has a limit, is taken for 1: its higher orders are to be left out.
    """
    h = jnp.where(jnp.isfinite(h), h, 1)
    return h * phi(2, sign * h), 2 * h * phi(3, sign * h), 6 * h * phi(4, sign * h)
