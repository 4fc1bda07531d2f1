"""Two-time flow maps: what a few-step student is.

    X(x_t, t, r) = x_t - (t - r) u(x_t, t, r),      u(x, t, t) = v(x, t)

carries x_t along the probability flow from time t to the target time r <= t. The network predicts u, the average
velocity between the two, and reads r from `cond.r`. X(x_t, t, 0) is the clean end of the path, a consistency function
(Song et al. 2023, arXiv 2303.01469); u(x_t, t, t) is the velocity of flow matching. Three identities hold for the true
u, each the root of a family of losses (Boffi et al. 2024, arXiv 2406.07507):

    Eulerian     u + (t - r) (d/dt + v . grad_x) u = v                                    mean_flow.py
    semigroup    (t - r) u(x_t, t, r) = (t - s) u(x_t, t, s) + (s - r) u(x_s, s, r)       semigroup.py
                 with x_s = X(x_t, t, s)
    Lagrangian   d/dr X(x_t, t, r) = v(X(x_t, t, r), r)                                   (not used here)

Everything in `distillation` is written in the time of rectified flow, alpha = 1 - t and sigma = t.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.diffusion import prediction, schedules
from nova_jax.types import Conditioning, Network, Params, Samples

SCHEDULE = schedules.RectifiedFlow()

TimesOfSamples = Float[Array, " b"]
AverageVelocity = Callable[[Samples, TimesOfSamples, TimesOfSamples], Samples]  # (x, t, r) -> u


def average_velocity(
    network: Network, params: Params, x: Samples, t: TimesOfSamples, r: TimesOfSamples, cond: Conditioning
) -> Samples:
    """The network's u(x, t, r), in float32."""
    return network(params, x, t, cond._replace(r=r)).astype(jnp.float32)


def move(x: Samples, t: TimesOfSamples, r: TimesOfSamples, velocity: Samples) -> Samples:
    """X = x - (t - r) velocity: from time t to time r on a straight line."""
    return x - prediction.right_pad(t - r, x) * velocity


def jump(u: AverageVelocity, x: Samples, t: TimesOfSamples, r: TimesOfSamples) -> Samples:
    """X(x, t, r), by one evaluation of u."""
    return move(x, t, r, u(x, t, r))
