"""Discrete consistency distillation: neighbours on the teacher's path share one clean end.

    (1)  loss = d( f(x_t, t), sg f(x_s, s) ),      f(x, t) = X(x, t, 0) = x - t u(x, t, 0),      s = t - 1/n

x_s is one step of the guided teacher from x_t, by Euler or by Heun; d the pseudo-Huber distance

    (2)  d(a, b) = sqrt(e + c^2) - c = e / (sqrt(e + c^2) + c),      e the mean square of a - b

and sg f the student itself or its EMA, without a gradient. At s = 0 f is the identity, which ties the chain to data.
One-step users see f(x_1, 1); more steps denoise and noise again (`sampling.Renoise`).

Song et al. 2023, Consistency models, arXiv 2303.01469, algorithm 2; Luo et al. 2023, Latent consistency models, arXiv
2310.04378 (guidance folded in); Song & Dhariwal 2023, 2310.14189 (2), and the student itself as target.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from nova_jax.distillation import flow_map, method, semigroup
from nova_jax.distillation.flow_map import TimesOfSamples
from nova_jax.types import Batch, Metrics, Params, Samples, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscreteConsistency(method.Method):
    """Regression of (1).

    A step costs one or two guided evaluations of the teacher, one of the student's target and one gradient.

    Attributes:
        num_intervals: n; what is learnt about the clean end passes on by one interval at a time, so fewer are learnt
            faster.
        solver: of the teacher's step; Heun's costs twice.
        target: what gives f(x_s, s): the student, or its EMA, along which the chain learns more slowly.
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

    def loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """Equation 1 on one batch; the metric `error` is the mean of e."""
        key_time, key_noise, key_scale = jax.random.split(key, 3)
        h = jnp.full(batch.x0.shape[:1], 1 / self.num_intervals)
        t = semigroup.sample_step(key_time, h)
        x_t, _ = method.noised(batch.x0, t, key_noise)
        scale = self.guidance.sample(key_scale, batch.x0.shape[0])
        u, v = self.velocities(networks, state, batch.cond, scale)

        def f(params: Params, x: Samples, t: TimesOfSamples) -> Samples:
            return flow_map.jump(functools.partial(u, params), x, t, jnp.zeros_like(t))

        x_s = self._teacher_step(v, x_t, t, t - h)
        target = jax.lax.stop_gradient(f(state.ema if self.target == "ema" else params, x_s, t - h))
        e = method.mean_square(f(params, x_t, t) - target)
        return (e / (jnp.sqrt(e + self.huber**2) + self.huber)).mean(), {"error": e.mean()}

    def _teacher_step(
        self, velocity: method.TeacherVelocity, x: Samples, t: TimesOfSamples, s: TimesOfSamples
    ) -> Samples:
        """x_s by one step of Euler or Heun along the teacher's velocity."""
        first = velocity(x, t)
        x_s = flow_map.move(x, t, s, first)
        if self.solver == "euler":
            return x_s
        return flow_map.move(x, t, s, (first + velocity(x_s, s)) / 2)
