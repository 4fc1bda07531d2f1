"""Discrete consistency distillation: neighbours on the teacher's path share one clean end.

    (1)  loss = d( f(x_t, t), sg f(x_s, s) ),      f(x, t) = X(x, t, 0) = x - t u(x, t, 0),      s = t - 1/n

x_s is one step of the guided teacher from x_t, by Euler or by Heun; d the pseudo-Huber distance

    (2)  d(a, b) = sqrt(e + c^2) - c = e / (sqrt(e + c^2) + c),      e the mean square of a - b

and sg the student itself or its average. At s = 0 f is the identity, which ties the chain to data. One-step users see
f(x_1, 1); more steps denoise and noise again (`sampling.Renoise`).

Song et al. 2023, Consistency models, arXiv 2303.01469, algorithm 2; Luo et al. 2023, Latent consistency models, arXiv
2310.04378 (guidance folded in); Song & Dhariwal 2023, 2310.14189 (2), and the student itself as target.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from nova_jax.distillation import flow_map, method, semigroup
from nova_jax.distillation.flow_map import Samples, TimesOfSamples
from nova_jax.training import step as steps
from nova_jax.training.optimizer import Optimizer
from nova_jax.types import Batch, Metrics, Params, TrainState, TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteConsistency(method.Method):
    """Regression of (1).

    A step costs one or two guided evaluations of the teacher, one of the student's target and one gradient.

    Attributes:
        num_intervals: n; news of the clean end passes one interval after the other, so fewer are learnt faster.
        solver: of the teacher's step; Heun's costs twice.
        target: who gives f(x_s, s): the student, or its average, which passes news along the chain more slowly.
        huber: c of (2); large: half the squared error over c.
    """

    sampler: str = "renoise"
    num_intervals: int = 16
    solver: Literal["euler", "heun"] = "heun"
    target: Literal["student", "ema"] = "student"
    huber: float = 0.03

    def __post_init__(self) -> None:
        if self.solver not in ("euler", "heun") or self.target not in ("ema", "student"):
            raise ValueError(f"solver={self.solver!r} is one of euler, heun and target={self.target!r} of ema, student")
        if self.num_intervals < 1 or self.huber <= 0:
            raise ValueError(f"num_intervals={self.num_intervals} and huber={self.huber} must be positive")

    @property
    def forwards(self) -> float | int:  # noqa: D102 (the base says it)
        return 3 + 1 + self.guidance.evaluations * (2 if self.solver == "heun" else 1)

    def memory(  # noqa: D102
        self, networks: method.Networks, params: Params, teacher: Params | None
    ) -> dict[str, Any]:
        del networks, params
        return {"teacher": teacher}

    def make_step(  # noqa: D102
        self, networks: method.Networks, optimizer: Optimizer, *, ema_decay: float, accumulate: int = 1, seed: int = 0
    ) -> TrainStep:
        def loss(params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            key_time, key_noise, key_scale = jax.random.split(key, 3)
            h = jnp.full(batch.x0.shape[:1], 1 / self.num_intervals)
            t = semigroup.draw_step(key_time, h)
            x_t, _ = method.noised(batch.x0, t, key_noise)
            scale = self.guidance.draw(key_scale, batch.x0.shape[0])

            def velocity(x: Samples, t: TimesOfSamples) -> Samples:
                return self.guidance.velocity(networks.teacher, state.extra["teacher"], x, t, batch.cond, scale)

            x_s = self._teacher_step(velocity, x_t, t, t - h)

            def end(params: Params, x: Samples, t: TimesOfSamples) -> Samples:
                cond = method.told(batch.cond, scale)
                return flow_map.jump(networks.student, params, x, t, jnp.zeros_like(t), cond)

            target = jax.lax.stop_gradient(end(state.ema if self.target == "ema" else params, x_s, t - h))
            e = method.mean_square(end(params, x_t, t) - target)
            return (e / (jnp.sqrt(e + self.huber**2) + self.huber)).mean(), {"error": e.mean()}

        return steps.make_step_with_memory(loss, optimizer, ema_decay=ema_decay, accumulate=accumulate, seed=seed)

    def _teacher_step(self, velocity: Any, x: Samples, t: TimesOfSamples, s: TimesOfSamples) -> Samples:
        """x_s by one step of Euler or Heun along the teacher's velocity."""
        first = velocity(x, t)
        x_s = flow_map.move(x, t, s, first)
        if self.solver == "euler":
            return x_s
        return flow_map.move(x, t, s, (first + velocity(x_s, s)) / 2)
