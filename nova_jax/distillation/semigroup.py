"""The semigroup identity of a flow map as a regression target: two small steps make one big step.

    (1)  u(x_t, t, t - h)  <-  (u_a + u_b) / 2,      u_a = u(x_t, t, t - h/2),  x_m = x_t - h/2 u_a,
                                                     u_b = u(x_m, t - h/2, t - h)

The right side is a constant. What gives it, and how h runs, makes two methods of one target: `progressive` and
`shortcut`. Neither needs forward-mode differentiation, so both work with every attention kernel.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from nova_jax.diffusion import prediction
from nova_jax.diffusion import time_sampling as time_samplings
from nova_jax.distillation import flow_map
from nova_jax.distillation.flow_map import AverageVelocity, TimesOfSamples
from nova_jax.types import Samples


def two_small_steps(
    velocity: AverageVelocity,
    x: Samples,
    t: TimesOfSamples,
    h: TimesOfSamples,
    is_known: Bool[Array, " b"] | None = None,
) -> Samples:
    """The right side of (1), without a gradient; where the whole step `is_known` to the velocity, its own answer."""
    middle = t - h / 2 if is_known is None else jnp.where(is_known, t - h, t - h / 2)
    first = velocity(x, t, middle)
    second = velocity(flow_map.move(x, t, middle, first), middle, t - h)
    both = (first + second) / 2
    chosen = both if is_known is None else jnp.where(prediction.right_pad(is_known, x), first, both)
    return jax.lax.stop_gradient(chosen)


def sample_step(key: PRNGKeyArray, h: TimesOfSamples) -> TimesOfSamples:
    """T for a step from t to t - h, evenly from the times h, 2h, .., 1, spread over the batch."""
    u = time_samplings.stratified(key, h.shape)
    return jnp.ceil((1 - u) / h) * h
