"""Guidance distillation: the student answers in one evaluation what the teacher needs two for.

    loss = mean || u(x_t, t, r, c, w) - v_g(x_t, t, c) ||^2,      r drawn anywhere in [0, t]

with v_g the guided velocity of `teacher.Guidance`. The student ignores r and still needs many steps, at half the price
of each; distilled further, it starts from a guided field.

Meng et al. 2023, On distillation of guided diffusion models, arXiv 2210.03142, equation 1.
"""

import dataclasses
from typing import Any

import jax
from jaxtyping import Array, PRNGKeyArray

from nova_jax.distillation import flow_map, method, time_pairs
from nova_jax.training import step as steps
from nova_jax.training.optimizer import Optimizer
from nova_jax.types import Batch, Metrics, Params, TrainState, TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceDistillation(method.Method):
    """Regression on the guided velocity.

    A step costs the teacher's one or two evaluations, and the gradient of one of the student.

    Attributes:
        pairs: times (t, r) to learn at.
    """

    pairs: time_pairs.Pairs = dataclasses.field(default_factory=time_pairs.AnyPair)

    @property
    def forwards(self) -> float | int:  # noqa: D102 (the base says it)
        return 3 + self.guidance.evaluations

    def memory(  # noqa: D102
        self, networks: method.Networks, params: Params, teacher: Params | None
    ) -> dict[str, Any]:
        del networks, params
        return {"teacher": teacher}

    def make_step(  # noqa: D102
        self, networks: method.Networks, optimizer: Optimizer, *, ema_decay: float, accumulate: int = 1, seed: int = 0
    ) -> TrainStep:
        def loss(params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            key_pairs, key_noise, key_scale = jax.random.split(key, 3)
            t, r = self.pairs.draw(key_pairs, batch.x0.shape[0])
            x_t, _ = method.noised(batch.x0, t, key_noise)
            scale = self.guidance.draw(key_scale, batch.x0.shape[0])
            target = self.guidance.velocity(networks.teacher, state.extra["teacher"], x_t, t, batch.cond, scale)
            u = flow_map.average_velocity(networks.student, params, x_t, t, r, method.told(batch.cond, scale))
            return method.mean_square(u - target).mean(), {}

        return steps.make_step_with_memory(loss, optimizer, ema_decay=ema_decay, accumulate=accumulate, seed=seed)
