"""A student and a teacher that know everything: the flow of N(MEAN, STD^2), with its average velocity."""

import jax.numpy as jnp

from nova_jax import distillation

MEAN, STD = 0.7, 0.4


def spread(t):
    return jnp.sqrt(((1 - t) * STD) ** 2 + t**2)


def column(t, x):
    return t.reshape(t.shape + (1,) * (x.ndim - t.ndim))


def velocity(params, x, t, cond):
    """E[eps - x0 | x_t]."""
    del params, cond
    t = column(t, x)
    return (t - (1 - t) * STD**2) / spread(t) ** 2 * (x - (1 - t) * MEAN) - MEAN


def average_velocity(params, x, t, cond):
    """(x - X(x, t, r)) / (t - r), written so that it and its derivatives are exact at r = t too."""
    del params
    t, r = column(t, x), column(cond.r, x)
    # X = (1 - r) MEAN + (x - (1 - t) MEAN) s_r / s_t, and s_t^2 - s_r^2 = (t - r) ((1 + STD^2) (t + r) - 2 STD^2)
    slope = ((1 + STD**2) * (t + r) - 2 * STD**2) / (spread(t) * (spread(t) + spread(r)))
    return (x - (1 - t) * MEAN) * slope - MEAN


NETWORKS = distillation.Networks(student=average_velocity, teacher=velocity, critic=velocity)
