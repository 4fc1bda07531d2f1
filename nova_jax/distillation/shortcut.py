"""Shortcut models: flow matching for the smallest steps, and two of them for every larger one.

    loss = k mean || u(x_t, t, t - h) - (u_a + u_b) / 2 ||^2  +  (1 - k) mean || u(x_t, t, t) - v ||^2

A share k of the rows learns the first part for random h = 1, 1/2, 1/4, .., with (u_a, u_b) of `semigroup` (1) from the
EMA student. The others learn the second, v = eps - x0 from data or v the guided teacher's velocity at x_t.

Frans et al. 2024, One step diffusion via shortcut models, arXiv 2410.12557, algorithm 1.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from nova_jax.diffusion import conditioning
from nova_jax.diffusion import time_sampling as time_samplings
from nova_jax.distillation import method, semigroup
from nova_jax.distillation.flow_map import TimesOfSamples
from nova_jax.types import Batch, Metrics, Params, Samples, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortcut(method.Method):
    """Shortcut models: flow matching and the semigroup identity, learnt together.

    Attributes:
        source: where u(x_t, t, t) is learnt from.
        max_steps: 1 / the smallest step; a power of two. Half steps below it are taken by u(x, t, t).
        bootstrap_parts: 1/k; one row in so many learns the larger steps.
        time_sampling: of the other rows.
        drop_rates: of the conditions, with source "data".
    """

    source: Literal["teacher", "data"] = "teacher"
    max_steps: int = 128
    bootstrap_parts: int = 4
    time_sampling: time_samplings.TimeSampling = dataclasses.field(default_factory=time_samplings.Uniform)
    drop_rates: conditioning.DropRates = conditioning.DropRates()  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        if self.source not in ("teacher", "data"):
            raise ValueError(f"source is {self.source!r}: use teacher or data")
        if self.max_steps < 2 or self.max_steps & (self.max_steps - 1) or self.bootstrap_parts < 2:
            raise ValueError(
                f"max_steps={self.max_steps} must be a power of two, bootstrap_parts={self.bootstrap_parts} at least 2"
            )
        if self.source == "data" and self.guidance.is_needed:
            raise ValueError("guidance is folded in from a teacher: set source='teacher', or guidance.scale=1")

    @property
    def needs_teacher(self) -> bool:  # noqa: D102 (the base says it)
        return self.source == "teacher"

    @property
    def forwards(self) -> float | int:  # noqa: D102
        share = 1 / self.bootstrap_parts
        of_teacher = self.guidance.evaluations if self.needs_teacher else 0
        return 3 + share * 2 + (1 - share) * of_teacher

    @property
    def trained_steps(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(1 << i for i in range(self.max_steps.bit_length()))

    def loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """Both parts of the loss on their rows of one batch."""
        key_bootstrap, key_flow = jax.random.split(key)
        few, rest = divide(batch, self.bootstrap_parts)
        bootstrap = self._bootstrap_loss(networks, params, state, few, key_bootstrap)
        flow = self._flow_loss(networks, params, state, rest, key_flow)
        share = 1 / self.bootstrap_parts
        return share * bootstrap + (1 - share) * flow, {"bootstrap": bootstrap, "flow": flow}

    def _bootstrap_loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> Array:
        """The semigroup identity for random step sizes."""
        key_size, key_time, key_noise, key_scale = jax.random.split(key, 4)
        sizes = self.max_steps.bit_length() - 1  # h = 1, 1/2, .., 2 / max_steps
        h = 2.0 ** -jnp.floor(time_samplings.stratified(key_size, batch.x0.shape[:1]) * sizes)
        t = semigroup.sample_step(key_time, h)
        x_t, _ = method.noised(batch.x0, t, key_noise)
        u, _ = self.velocities(networks, state, batch.cond, self.guidance.sample(key_scale, batch.x0.shape[0]))

        def of_ema(x: Samples, t: TimesOfSamples, r: TimesOfSamples) -> Samples:
            return u(state.ema, x, t, jnp.where(t - r <= 1 / self.max_steps, t, r))

        target = semigroup.two_small_steps(of_ema, x_t, t, h)
        return method.mean_square(u(params, x_t, t, t - h) - target).mean()

    def _flow_loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> Array:
        """Flow matching of u(x_t, t, t), from data or from the teacher."""
        key_time, key_noise, key_scale, key_drop = jax.random.split(key, 4)
        t = self.time_sampling.quantile(time_samplings.stratified(key_time, batch.x0.shape[:1]))
        x_t, eps = method.noised(batch.x0, t, key_noise)
        scale = self.guidance.sample(key_scale, batch.x0.shape[0])
        if self.source == "teacher":
            u, teacher = self.velocities(networks, state, batch.cond, scale)
            v = teacher(x_t, t)
        else:
            v = eps - batch.x0
            u, _ = self.velocities(networks, state, conditioning.drop(batch.cond, key_drop, self.drop_rates), scale)
        return method.mean_square(u(params, x_t, t, t) - v).mean()


def divide(batch: Batch, parts: int) -> tuple[Batch, Batch]:
    """Every row whose number is a multiple of `parts`, and the others: each device keeps its rows.

    Raises:
        ValueError: the batch has not a multiple of `parts` rows.
    """
    rows = batch.x0.shape[0]
    if rows % parts:
        raise ValueError(f"a batch of {rows} cannot be divided into {parts} equal parts: change batch_size")

    def cut(x: Array, which: slice) -> Any:
        return x.reshape(-1, parts, *x.shape[1:])[:, which].reshape(-1, *x.shape[1:])

    return tuple(jax.tree.map(lambda x, w=which: cut(x, w), batch) for which in (slice(0, 1), slice(1, None)))  # pyright: ignore[reportReturnType]
