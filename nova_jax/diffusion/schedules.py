"""Schedules: how much signal and how much noise x_t holds at time t, from data (t = 0) to noise (t = 1).

    (1)  x_t      = alpha(t) x0 + sigma(t) eps
    (2)  logsnr   = 2 log(alpha / sigma)
    (3)  velocity = alpha'(t) x0 + sigma'(t) eps                  dx_t/dt along the line through x0 and eps

A schedule states alpha, sigma and the inverse of (2); everything else follows. A new schedule is a new subclass.

Time has one meaning everywhere, so resolution shift is no part of a schedule (inside one it would also change (3)). It
moves *which* times are visited: in training by `time_sampling.Shifted`, in sampling by `time_grids.shifted`, both
through

    (4)  t' = s t / (1 + (s - 1) t)

which divides the signal-to-noise ratio of rectified flow by s^2. Shifts compose by multiplication; s = 1 is the
identity.

Papers: Lipman et al. 2022, Flow Matching (arXiv 2210.02747); Liu et al. 2022, Rectified Flow (2209.03003); Nichol &
Dhariwal 2021, Improved DDPM (2102.09672); Salimans & Ho 2022 (2202.00512); Esser et al. 2024, Stable Diffusion 3
(2403.03206, eq. 23).
"""

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Schedule(abc.ABC):
    """The pair (alpha, sigma) as functions of time, elementwise over times of any shape."""

    @abc.abstractmethod
    def alpha(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The factor of the data; 1 at t = 0, falling."""

    @abc.abstractmethod
    def sigma(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The factor of the noise; 0 at t = 0, rising."""

    @abc.abstractmethod
    def inverse_logsnr(self, logsnr: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The time at which the log signal-to-noise ratio (2) has this value."""

    def logsnr(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The log signal-to-noise ratio (2), falling; +inf where there is no noise, -inf where there is no data."""
        return 2 * (jnp.log(self.alpha(t)) - jnp.log(self.sigma(t)))

    def d_alpha(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The time derivative of alpha."""
        return jax.jvp(self.alpha, (t,), (jnp.ones_like(t),))[1]

    def d_sigma(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The time derivative of sigma."""
        return jax.jvp(self.sigma, (t,), (jnp.ones_like(t),))[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Schedule):
    """The straight line from data to noise: alpha = 1 - t, sigma = t, velocity = eps - x0."""

    def alpha(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102 (the base says it)
        return 1 - t

    def sigma(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return t

    def inverse_logsnr(self, logsnr: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return jax.nn.sigmoid(-logsnr / 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariancePreservingCosine(Schedule):
    """The cosine schedule in continuous time: alpha = cos(phi), sigma = sin(phi), the angle phi proportional to t.

    Starts at exact data. Ends at a finite log-SNR, so that x0 stays recoverable from eps at t = 1.
    """

    last_logsnr: float = -15.0  # the end that Hoogeboom et al. 2023 (arXiv 2301.11093) train with

    @property
    def last_angle(self) -> float:
        """The angle phi at t = 1, just below pi / 2."""
        return math.atan(math.exp(-self.last_logsnr / 2))

    def alpha(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return jnp.cos(self.last_angle * t)

    def sigma(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return jnp.sin(self.last_angle * t)

    def inverse_logsnr(self, logsnr: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return jnp.arctan(jnp.exp(-logsnr / 2)) / self.last_angle


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceExploding(Schedule):
    """Noise added to untouched data: alpha = 1, sigma = sigma_max t (Karras et al. 2022, arXiv 2206.00364).

    Time is the noise level itself, scaled to 1, so that the flow is as straight as it can be; `time_grids.karras` puts
    the steps where they belong. The noise that sampling starts from must be scaled by sigma_max; the data are never
    quite forgotten.
    """

    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if self.sigma_max <= 0:
            raise ValueError(f"sigma_max must be above 0, got {self.sigma_max}")

    def alpha(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return jnp.ones_like(t)

    def sigma(self, t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return self.sigma_max * t

    def inverse_logsnr(self, logsnr: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return jnp.exp(-logsnr / 2) / self.sigma_max


def shift_time(t: Float[Array, "*dims"], shift: float | Float[Array, ""]) -> Float[Array, "*dims"]:
    """Moves times towards noise (shift > 1) or data (shift < 1) by (4); 0 and 1 stay where they are, exactly."""
    return t / (t + (1 - t) / shift)


def resolution_shift(tokens: int, base_tokens: int) -> float:
    """The shift that gives `tokens` visual tokens the same uncertainty at time t' as `base_tokens` have at t.

    Averaging n tokens of one colour divides their noise by sqrt(n): shift = sqrt(tokens / base_tokens) (Esser et al.
    2024). A "dynamic shift" mu of other samplers is log(shift).
    """
    if tokens < 1 or base_tokens < 1:
        raise ValueError(f"token counts must be at least 1, got tokens={tokens}, base_tokens={base_tokens}")
    return math.sqrt(tokens / base_tokens)
