"""Guidance distillation: the student answers in one evaluation what the teacher needs two for.

    loss = mean || u(x_t, t, r, c, w) - v_g(x_t, t, c) ||^2,      r drawn anywhere in [0, t]

with v_g the guided velocity of `teacher.Guidance`. The student ignores r and still needs many steps, at half the cost
of each; distilled further, it starts from a guided field.

Meng et al. 2023, On distillation of guided diffusion models, arXiv 2210.03142, equation 1.
"""

import dataclasses

import jax
from jaxtyping import Array, PRNGKeyArray

from nova_jax.distillation import method, time_pairs
from nova_jax.types import Batch, Metrics, Params, TrainState


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

    def loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """Equation 1 on one batch."""
        key_pairs, key_noise, key_scale = jax.random.split(key, 3)
        t, r = self.pairs.sample(key_pairs, batch.x0.shape[0])
        x_t, _ = method.noised(batch.x0, t, key_noise)
        scale = self.guidance.sample(key_scale, batch.x0.shape[0])
        u, v = self.velocities(networks, state, batch.cond, scale)
        target = v(x_t, t)
        return method.mean_square(u(params, x_t, t, r) - target).mean(), {}
