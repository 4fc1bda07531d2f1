"""Progressive distillation: two steps of the last stage make one step of this one.

    loss = mean || u(x_t, t, t - h) - (u_a + u_b) / 2 ||^2,      (u_a, u_b) of `semigroup` (1)

in stages of h = 1/n, 1/(n/2), .., 1. The small steps of the first are the guided teacher's, those of each later one
those of the EMA student at the end of the stage before. A share of the rows repeats earlier stages, so that one student
serves all of them.

Salimans & Ho 2022, arXiv 2202.00512, algorithm 2.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from nova_jax.diffusion import time_sampling as time_samplings
from nova_jax.distillation import method, semigroup
from nova_jax.types import Batch, Metrics, Params, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progressive(method.Method):
    """Progressive distillation: the number of steps halves from stage to stage.

    A step costs two evaluations of what it learns from and the gradient of one of the student. The EMA student is the
    teacher of the next stage, so `ema_decay` should forget within a stage, and the learning rate last to the end.

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
        return {**super().memory(networks, params, teacher), "previous": params}

    def prepare(
        self, networks: method.Networks, state: TrainState, batch: Batch, key: PRNGKeyArray, *, accumulate: int
    ) -> tuple[TrainState, PRNGKeyArray, Metrics]:
        """Where a stage begins, the EMA student becomes the `previous` one."""
        begins = (state.step % self.stage_length == 0) & (state.step < self.num_stages * self.stage_length)
        previous = jax.tree.map(lambda a, b: jnp.where(begins, a, b), state.ema, state.extra["previous"])
        return state._replace(extra={**state.extra, "previous": previous}), key, {}

    def loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """The loss of the stage on one batch, and its number."""
        key_size, key_time, key_noise, key_scale = jax.random.split(key, 4)
        stage = jnp.minimum(state.step // self.stage_length, self.num_stages - 1)
        age = self._draw_age(key_size, stage, batch.x0.shape[0])
        h = 2.0 ** (stage - age) / self.first_steps
        t = semigroup.sample_step(key_time, h)
        x_t, _ = method.noised(batch.x0, t, key_noise)
        u, v = self.velocities(networks, state, batch.cond, self.guidance.sample(key_scale, batch.x0.shape[0]))
        of_previous = functools.partial(u, state.extra["previous"])
        target = jax.lax.cond(
            stage == 0,
            lambda: semigroup.two_small_steps(lambda x, t, r: v(x, t), x_t, t, h),
            lambda: semigroup.two_small_steps(of_previous, x_t, t, h, is_known=age > 0),
        )
        loss = method.mean_square(u(params, x_t, t, t - h) - target).mean()
        return loss, {"stage": stage.astype(jnp.float32)}

    def _draw_age(self, key: PRNGKeyArray, stage: Array, batch_size: int) -> Int[Array, " b"]:
        """How many stages ago each row's step was new: 0, or evenly 1 .. stage in a share of the rows."""
        u = time_samplings.stratified(key, (batch_size,)) / max(self.repeated_share, 1e-6)
        return jnp.where(u < 1, jnp.ceil(u * stage), 0).astype(jnp.int32)
