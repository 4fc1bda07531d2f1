"""How much each time counts in the loss: w(t) ||prediction - target||^2, in the space of what the network predicts.

The kinds of prediction already weigh noise levels differently: their errors differ from the x0 error by the factors of
`prediction.error_factors`. A weighting multiplies on top. A new one is a new frozen dataclass with this call signature.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.diffusion import prediction, schedules


@runtime_checkable
class Weighting(Protocol):
    """The weight of the squared error of a prediction of this kind at times t, elementwise."""

    def __call__(  # noqa: D102 (the class says it)
        self, kind: prediction.Kind, t: Float[Array, "*dims"], schedule: schedules.Schedule
    ) -> Float[Array, "*dims"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Constant:
    """Every time counts alike."""

    def __call__(
        self, kind: prediction.Kind, t: Float[Array, "*dims"], schedule: schedules.Schedule
    ) -> Float[Array, "*dims"]:
        """1 everywhere."""
        return jnp.ones_like(t)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinSNR:
    """min(snr, gamma) on the squared x0 error, for every kind (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""

    gamma: float = 5.0  # the paper's default

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise ValueError(f"gamma must be positive, got {self.gamma}")

    def __call__(
        self, kind: prediction.Kind, t: Float[Array, "*dims"], schedule: schedules.Schedule
    ) -> Float[Array, "*dims"]:
        """min(snr, gamma) e_x0^2 = min(e_eps^2, gamma e_x0^2), which is finite where snr is not."""
        e_x0, e_eps = prediction.error_factors(kind, t, schedule)
        return jnp.minimum(e_eps**2, self.gamma * e_x0**2)
