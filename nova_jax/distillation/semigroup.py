"""Two small steps make one big step: distillation by the semigroup identity of a flow map.

    (1)  u(x_t, t, t - h)  <-  (u_a + u_b) / 2,      u_a = u(x_t, t, t - h/2),  x_m = x_t - h/2 u_a,
                                                     u_b = u(x_m, t - h/2, t - h)

The right side is a constant; who gives it, and how h runs, makes two methods of one target:

    Progressive   stages of h = 1/n, 1/(n/2), .., 1. The small steps of the first are the guided teacher's, those of
                  each later one the averaged student's at the end of the stage before (Salimans & Ho 2022, arXiv
                  2202.00512). A share of the rows repeats earlier stages, so that one student serves all of them
    Shortcut      one stage. A share of the rows learns (1) for random h = 1, 1/2, 1/4, .. from the averaged student;
                  the others learn u(x_t, t, t) from data or from the teacher (Frans et al. 2024, arXiv 2410.12557)

Neither needs forward-mode differentiation, so both work with every attention kernel.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray

from nova_jax.diffusion import conditioning, prediction
from nova_jax.diffusion import time_sampling as time_samplings
from nova_jax.distillation import flow_map, method
from nova_jax.distillation.flow_map import AverageVelocity, Samples, TimesOfSamples
from nova_jax.training import step as steps
from nova_jax.training.optimizer import Optimizer
from nova_jax.types import Batch, Metrics, Params, TrainState, TrainStep


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


def draw_step(key: PRNGKeyArray, h: TimesOfSamples) -> TimesOfSamples:
    """T for a step from t to t - h, evenly from the times h, 2h, .., 1, spread over the batch."""
    u = time_samplings.stratified(key, h.shape)
    return jnp.ceil((1 - u) / h) * h


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive(method.Method):
    """Progressive distillation: the number of steps halves from stage to stage.

    A step costs two evaluations of what it learns from and the gradient of one of the student. The averaged student is
    the teacher of the next stage, so `ema_decay` should forget within a stage, and the learning rate last to the end.

    Attributes:
        first_steps: n, steps of the first stage; a power of two.
        stage_length: training steps of each stage; the last one goes on to the end of the run.
        repeated_share: rows that repeat what the student knew at the end of the stage before; 0 forgets all but h = 1.
    """

    first_steps: int = 32
    stage_length: int = 1000
    repeated_share: float = 0.5

    def __post_init__(self) -> None:
        if self.first_steps < 1 or self.first_steps & (self.first_steps - 1) or self.stage_length < 1:
            raise ValueError(
                f"first_steps={self.first_steps} must be a power of two and stage_length={self.stage_length} positive"
            )
        if not 0 <= self.repeated_share < 1:
            raise ValueError(f"repeated_share={self.repeated_share} must lie in [0, 1)")

    def _draw_age(self, key: PRNGKeyArray, stage: Array, batch_size: int) -> Int[Array, " b"]:
        """How many stages ago each row's step was new: 0, or evenly 1 .. stage in a share of the rows."""
        u = time_samplings.stratified(key, (batch_size,)) / max(self.repeated_share, 1e-6)
        return jnp.where(u < 1, jnp.ceil(u * stage), 0).astype(jnp.int32)

    @property
    def num_stages(self) -> int:
        """Stages from `first_steps` steps to one."""
        return self.first_steps.bit_length()

    @property
    def forwards(self) -> float | int:  # noqa: D102 (the base says it)
        return 3 + 2

    @property
    def trained_steps(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(1 << i for i in range(self.num_stages)) if self.repeated_share else (1,)

    def memory(  # noqa: D102
        self, networks: method.Networks, params: Params, teacher: Params | None
    ) -> dict[str, Any]:
        del networks
        return {"teacher": teacher, "previous": params}

    def make_step(  # noqa: D102
        self, networks: method.Networks, optimizer: Optimizer, *, ema_decay: float, accumulate: int = 1, seed: int = 0
    ) -> TrainStep:
        def loss(params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            key_size, key_time, key_noise, key_scale = jax.random.split(key, 4)
            stage = jnp.minimum(state.step // self.stage_length, self.num_stages - 1)
            age = self._draw_age(key_size, stage, batch.x0.shape[0])
            h = 2.0 ** (stage - age) / self.first_steps
            t = draw_step(key_time, h)
            x_t, _ = method.noised(batch.x0, t, key_noise)
            scale = self.guidance.draw(key_scale, batch.x0.shape[0])
            cond = method.told(batch.cond, scale)

            def of_teacher(x: Samples, t: TimesOfSamples, r: TimesOfSamples) -> Samples:
                del r
                return self.guidance.velocity(networks.teacher, state.extra["teacher"], x, t, batch.cond, scale)

            def of_previous(x: Samples, t: TimesOfSamples, r: TimesOfSamples) -> Samples:
                return flow_map.average_velocity(networks.student, state.extra["previous"], x, t, r, cond)

            target = jax.lax.cond(
                stage == 0,
                lambda: two_small_steps(of_teacher, x_t, t, h),
                lambda: two_small_steps(of_previous, x_t, t, h, is_known=age > 0),
            )
            u = flow_map.average_velocity(networks.student, params, x_t, t, t - h, cond)
            return method.mean_square(u - target).mean(), {"stage": stage.astype(jnp.float32)}

        def prepare(state: TrainState) -> TrainState:
            begins = (state.step % self.stage_length == 0) & (state.step < self.num_stages * self.stage_length)
            previous = jax.tree.map(lambda a, b: jnp.where(begins, a, b), state.ema, state.extra["previous"])
            return state._replace(extra={**state.extra, "previous": previous})

        return steps.make_step_with_memory(
            loss, optimizer, ema_decay=ema_decay, accumulate=accumulate, seed=seed, prepare=prepare
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shortcut(method.Method):
    """Shortcut models: flow matching and the semigroup identity, learnt together.

    Attributes:
        source: where u(x_t, t, t) is learnt from.
        max_steps: 1 / the smallest step; a power of two. Half steps below it are taken by u(x, t, t).
        bootstrap_parts: one row in so many learns (1).
        time_sampling: of the other rows.
        drop_rates: of the conditions, with source "data".
    """

    source: Literal["teacher", "data"] = "teacher"
    max_steps: int = 128
    bootstrap_parts: int = 4
    time_sampling: time_samplings.TimeSampling = dataclasses.field(default_factory=time_samplings.Uniform)
    drop_rates: conditioning.DropRates = conditioning.DropRates()

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
    def needs_teacher(self) -> bool:  # noqa: D102
        return self.source == "teacher"

    @property
    def forwards(self) -> float | int:  # noqa: D102
        share = 1 / self.bootstrap_parts
        of_teacher = self.guidance.evaluations if self.needs_teacher else 0
        return 3 + share * 2 + (1 - share) * of_teacher

    @property
    def trained_steps(self) -> tuple[int, ...]:  # noqa: D102
        return tuple(1 << i for i in range(self.max_steps.bit_length()))

    def memory(  # noqa: D102
        self, networks: method.Networks, params: Params, teacher: Params | None
    ) -> dict[str, Any]:
        del networks, params
        return {"teacher": teacher} if self.needs_teacher else {}

    def make_step(  # noqa: D102
        self, networks: method.Networks, optimizer: Optimizer, *, ema_decay: float, accumulate: int = 1, seed: int = 0
    ) -> TrainStep:
        def loss(params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            key_big, key_flow = jax.random.split(key)
            big, rest = divide(batch, self.bootstrap_parts)
            bootstrap = self._bootstrap(networks, params, state, big, key_big)
            flow = self._flow(networks, params, state, rest, key_flow)
            share = 1 / self.bootstrap_parts
            return share * bootstrap + (1 - share) * flow, {"bootstrap": bootstrap, "flow": flow}

        return steps.make_step_with_memory(loss, optimizer, ema_decay=ema_decay, accumulate=accumulate, seed=seed)

    def _bootstrap(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> Array:
        """(1) for random step sizes, from the averaged student."""
        key_size, key_time, key_noise, key_scale = jax.random.split(key, 4)
        sizes = self.max_steps.bit_length() - 1  # h = 1, 1/2, .., 2 / max_steps
        u = time_samplings.stratified(key_size, batch.x0.shape[:1])
        h = 2.0 ** -jnp.floor(u * sizes)
        t = draw_step(key_time, h)
        x_t, _ = method.noised(batch.x0, t, key_noise)
        cond = method.told(batch.cond, self.guidance.draw(key_scale, batch.x0.shape[0]))

        def averaged(x: Samples, t: TimesOfSamples, r: TimesOfSamples) -> Samples:
            r = jnp.where(t - r <= 1 / self.max_steps, t, r)
            return flow_map.average_velocity(networks.student, state.ema, x, t, r, cond)

        target = two_small_steps(averaged, x_t, t, h)
        return method.mean_square(
            flow_map.average_velocity(networks.student, params, x_t, t, t - h, cond) - target
        ).mean()

    def _flow(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> Array:
        """u(x_t, t, t) from data or from the teacher."""
        key_time, key_noise, key_scale, key_drop = jax.random.split(key, 4)
        t = self.time_sampling.quantile(time_samplings.stratified(key_time, batch.x0.shape[:1]))
        x_t, eps = method.noised(batch.x0, t, key_noise)
        scale = self.guidance.draw(key_scale, batch.x0.shape[0])
        cond = method.told(batch.cond, scale)
        if self.source == "teacher":
            v = self.guidance.velocity(networks.teacher, state.extra["teacher"], x_t, t, batch.cond, scale)
        else:
            v, cond = eps - batch.x0, conditioning.drop(cond, key_drop, self.drop_rates)
        return method.mean_square(flow_map.average_velocity(networks.student, params, x_t, t, t, cond) - v).mean()


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
