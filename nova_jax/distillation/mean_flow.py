"""MeanFlow: a flow map from its Eulerian identity, by forward-mode differentiation.

    (1)  u + (t - r) D u = v(x_t, t),      D u = (d/dt + w . grad_x) u(x_t, t, r)        one jvp along (w, 1, 0)
    (2)  error = u + (t - r) sg(D u) - v,        loss = mean e / sg(e + c)^p,  e = mean-square of the error

(1) is exact for the true average velocity with w = v, the marginal velocity. What stands for v decides the method:

    source "teacher"    v is the teacher's guided velocity at x_t, and so is w                  distillation
    source "data"       v = eps - x0, whose mean given x_t is the marginal velocity; w = v      MeanFlow
                        w = sg u(x_t, t, t), the network's own marginal velocity                improved MeanFlow
    pairs ToData()      r = 0: continuous-time consistency (sCM in the time of rectified flow); p = 1/2 is its
                        normalisation of the tangent, `warmup` the ramp of D u

D u is exact, or a difference over a short way back along w, which needs no forward mode and smooths what a network that
embeds 1000 t does between the times it was trained at:

    (3)  D u ~ (u(x_t, t, r) - u(x_t - d w, t - d, r)) / d,      d = min(difference, t - r)

sg stops the gradient, so nothing is differentiated twice. Guidance from data: v <- omega v + (1 - omega) sg u_0,
with u_0 = u(x_t, t, t) for the null condition and omega the scale (MeanFlow, section 4.2), learnt beside rows whose
condition is dropped.

With p > 0 the regression no longer targets the mean: p = 1 is what MeanFlow uses on images; on low-dimensional problems
it biases the map. The papers take sums over the elements of a sample where e is a mean, so their c differs.

Geng et al. 2025, MeanFlow, arXiv 2505.13447, equations 6 - 11 and 19; Geng et al. 2025, Improved mean flows, arXiv
2512.02012; Lu & Song 2024, sCM, 2410.11081, equation 6; distillation: Lee et al. 2025, Decoupled MeanFlow, 2510.24474.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from nova_jax.diffusion import conditioning, prediction
from nova_jax.distillation import flow_map, method, time_pairs
from nova_jax.distillation.flow_map import AverageVelocity, TimesOfSamples
from nova_jax.types import Batch, Metrics, Params, Samples, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanFlow(method.Method):
    """Regression on the Eulerian identity (2).

    A step costs about 1.4 gradients of flow matching, and the teacher's one or two evaluations.

    Attributes:
        source: where v comes from.
        is_improved: whether the derivative is taken along the network's own velocity, with source "data".
        pairs: times (t, r) to learn at.
        norm_power: p of (2).
        norm_floor: c of (2).
        warmup: steps over which D u is faded in; 0: at once, which with r = 0 is unstable in the toy problem.
        difference: length of (3); None: exact.
        drop_rates: of the conditions, with source "data" and guidance.
    """

    source: Literal["teacher", "data"] = "teacher"
    is_improved: bool = False
    pairs: time_pairs.Pairs = dataclasses.field(default_factory=time_pairs.AnyPair)
    norm_power: float = 0.0
    norm_floor: float = 1e-3
    warmup: int = 0
    difference: float | None = None
    drop_rates: conditioning.DropRates = conditioning.DropRates()  # pyright: ignore[reportIncompatibleVariableOverride]

    def __post_init__(self) -> None:
        if self.source not in ("teacher", "data"):
            raise ValueError(f"source is {self.source!r}: use teacher or data")
        if self.source == "teacher" and self.is_improved:
            raise ValueError("is_improved goes with source='data': the teacher's velocity is the marginal one already")
        if self.difference is not None and not 0 < self.difference < 1:
            raise ValueError(f"difference={self.difference} must be None or lie between 0 and 1")
        if not 0 <= self.norm_power <= 1 or self.norm_floor <= 0 or self.warmup < 0:
            raise ValueError(
                f"norm_power={self.norm_power} must lie in [0, 1], norm_floor={self.norm_floor} above 0 and "
                f"warmup={self.warmup} be at least 0"
            )

    @property
    def needs_teacher(self) -> bool:  # noqa: D102 (the base says it)
        return self.source == "teacher"

    @property
    def needs_jvp(self) -> bool:  # noqa: D102
        return self.difference is None

    @property
    def forwards(self) -> float | int:  # noqa: D102
        if self.source == "teacher":
            return 4 + self.guidance.evaluations
        return 4 + self.is_improved + self.guidance.is_needed

    def loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """Equation 2 on one batch, in float32; the metric `error` is the mean of e."""
        key_pairs, key_noise, key_scale, key_drop = jax.random.split(key, 4)
        t, r = self.pairs.sample(key_pairs, batch.x0.shape[0])
        x_t, eps = method.noised(batch.x0, t, key_noise)
        scale = self.guidance.sample(key_scale, batch.x0.shape[0])
        if self.source == "teacher":
            u, teacher = self.velocities(networks, state, batch.cond, scale)
            v = w = teacher(x_t, t)
        else:
            cond = conditioning.drop(batch.cond, key_drop, self.drop_rates)
            u, _ = self.velocities(networks, state, cond, scale)
            v = eps - batch.x0
            if self.guidance.is_needed:
                u_null, _ = self.velocities(networks, state, conditioning.null(cond, parts=self.guidance.parts), scale)
                v = self.guidance.combine(v, jax.lax.stop_gradient(u_null(params, x_t, t, t)), t, scale)
            w = jax.lax.stop_gradient(u(params, x_t, t, t)) if self.is_improved else v

        value, derivative = value_and_derivative(functools.partial(u, params), x_t, t, r, w, self.difference)
        fade = jnp.minimum(1.0, state.step / self.warmup) if self.warmup else 1.0
        e = method.mean_square(identity_error(value, derivative, v, t - r, fade))
        return (e / jax.lax.stop_gradient(e + self.norm_floor) ** self.norm_power).mean(), {"error": e.mean()}


def value_and_derivative(
    u: AverageVelocity,
    x_t: Samples,
    t: TimesOfSamples,
    r: TimesOfSamples,
    direction: Samples,
    difference: float | None = None,
) -> tuple[Samples, Samples]:
    """u(x_t, t, r) and D u along `direction`, exact or by (3); the derivative without a gradient."""
    if difference is None:
        value, derivative = jax.jvp(u, (x_t, t, r), (direction, jnp.ones_like(t), jnp.zeros_like(r)))
        return value, jax.lax.stop_gradient(derivative)
    value, way = u(x_t, t, r), jnp.minimum(difference, t - r)
    before = u(flow_map.move(x_t, t, t - way, direction), t - way, r)
    divisor = prediction.right_pad(jnp.where(way > 0, way, 1.0), x_t)  # where r = t its share of the error is 0
    return value, jax.lax.stop_gradient((value - before) / divisor)


def identity_error(
    value: Samples, derivative: Samples, v: Samples, elapsed: TimesOfSamples, fade: Array | float = 1.0
) -> Samples:
    """The error of (2), with elapsed = t - r and D u faded in by `fade`."""
    return value + fade * prediction.right_pad(elapsed, value) * derivative - v
