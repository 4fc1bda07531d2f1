"""The pairs of times (t, r), r <= t, that a flow map is trained on.

    AnyPair     two draws of one distribution, sorted; a share of rows has r = t (flow matching)
    ToData      r = 0: the pairs of a consistency function

One-step sampling evaluates the pair (1, 0) alone, so a share of the rows, `full_share`, is that very pair. Times are
stratified over the batch, as in `diffusion.objectives`; the shares are those of Geng et al. 2025, MeanFlow, arXiv
2505.13447, table 1.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nova_jax.diffusion import time_sampling as time_samplings

Pair = tuple[Float[Array, " b"], Float[Array, " b"]]


class Pairs(abc.ABC):
    """A distribution over pairs of times."""

    @abc.abstractmethod
    def sample(self, key: PRNGKeyArray, batch_size: int) -> Pair:
        """(t, r) of each sample, r <= t."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnyPair(Pairs):
    """Both times from one distribution.

    Attributes:
        time_sampling: of both.
        same_share: of the rows, with r = t.
        full_share: of the rows, with t = 1 and r = 0.
    """

    time_sampling: time_samplings.TimeSampling = dataclasses.field(
        default_factory=lambda: time_samplings.LogitNormal(mean=-0.4)
    )
    same_share: float = 0.75
    full_share: float = 0.0

    def __post_init__(self) -> None:
        _check_shares(self.same_share, self.full_share)

    def sample(self, key: PRNGKeyArray, batch_size: int) -> Pair:  # noqa: D102 (the base says it)
        key_first, key_second, key_share = jax.random.split(key, 3)
        first, second = (
            self.time_sampling.quantile(time_samplings.stratified(k, (batch_size,))) for k in (key_first, key_second)
        )
        share = time_samplings.stratified(key_share, (batch_size,))
        t, r = jnp.maximum(first, second), jnp.minimum(first, second)
        t, r = jnp.where(share < self.same_share, first, t), jnp.where(share < self.same_share, first, r)
        return _with_full(t, r, share, self.full_share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToData(Pairs):
    """The target time is always r = 0.

    Attributes:
        time_sampling: of t.
        full_share: of the rows, with t = 1.
    """

    time_sampling: time_samplings.TimeSampling = dataclasses.field(
        default_factory=lambda: time_samplings.LogitNormal(mean=-0.4)
    )
    full_share: float = 0.0

    def __post_init__(self) -> None:
        _check_shares(0.0, self.full_share)

    def sample(self, key: PRNGKeyArray, batch_size: int) -> Pair:  # noqa: D102
        key_time, key_share = jax.random.split(key)
        t = self.time_sampling.quantile(time_samplings.stratified(key_time, (batch_size,)))
        share = time_samplings.stratified(key_share, (batch_size,))
        return _with_full(t, jnp.zeros_like(t), share, self.full_share)


def _with_full(t: Array, r: Array, share: Array, full_share: float) -> Pair:
    """The pair (1, 0) in the rows with the highest shares."""
    is_full = share >= 1 - full_share
    return jnp.where(is_full, 1.0, t), jnp.where(is_full, 0.0, r)


def _check_shares(same: float, full: float) -> None:
    if min(same, full) < 0 or same + full > 1:
        raise ValueError(f"same_share={same} and full_share={full} are shares of the rows: each >= 0, together <= 1")
