"""Which times are trained: distributions over t in [0, 1], each given by its quantile function.

    u ~ Uniform(0, 1),   t = quantile(u)

Drawing u apart from t lets one batch be stratified whatever the distribution: with b samples, one u falls in each
interval [i / b, (i + 1) / b), so a batch covers all noise levels and the loss varies less from step to step, while
each sample's t keeps its distribution (Kingma et al. 2021, Variational Diffusion Models, arXiv 2107.00630, appendix
I.1). The intervals are dealt to the samples at random, so a sample's place in the batch says nothing about its time.

LogitNormal and the shift: Esser et al. 2024, Stable Diffusion 3 (arXiv 2403.03206, section 3.1 and eq. 23).
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nova_jax.diffusion import schedules


class TimeSampling(abc.ABC):
    """A distribution of training times."""

    @abc.abstractmethod
    def quantile(self, u: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The time below which a share u of the training times lies; rising, elementwise."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform(TimeSampling):
    """All times alike."""

    def quantile(self, u: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102 (the base says it)
        return u


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal(TimeSampling):
    """logit(t) ~ N(mean, std^2): most training where predicting is hardest, in the middle."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"std must be positive, got {self.std}")

    def quantile(self, u: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return jax.nn.sigmoid(self.mean + self.std * jax.scipy.special.ndtri(u))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shifted(TimeSampling):
    """Another distribution, its times moved towards noise by a resolution shift; see `schedules.resolution_shift`."""

    base: TimeSampling = dataclasses.field(default_factory=LogitNormal)
    shift: float = 3.0  # what Esser et al. 2024 use at 1024 x 1024

    def __post_init__(self) -> None:
        if self.shift <= 0:
            raise ValueError(f"shift must be positive, got {self.shift}; 1 changes nothing")

    def quantile(self, u: Float[Array, "*dims"]) -> Float[Array, "*dims"]:  # noqa: D102
        return schedules.shift_time(self.base.quantile(u), self.shift)


def independent(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*dims"]:
    """Uniform numbers, each drawn on its own."""
    return jax.random.uniform(key, shape)


def stratified(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*dims"]:
    """Uniform numbers that cover [0, 1) evenly along the first axis, in random order; other axes are independent."""
    key_order, key_offset = jax.random.split(key)
    interval = jnp.argsort(jax.random.uniform(key_order, shape), axis=0)
    return (interval + jax.random.uniform(key_offset, shape)) / shape[0]
