"""Adaptive steps: as many as the tolerance asks for, where it asks for them.

Bogacki & Shampine's embedded pair 3(2) (1989; Hairer, Norsett & Wanner 1993, section II.4), with f the velocity:

    k1 = f(x, t)    k2 = f(x + h/2 k1, t + h/2)    k3 = f(x + 3h/4 k2, t + 3h/4)
    x' = x + h (2/9 k1 + 3/9 k2 + 4/9 k3)                                           third order
    k4 = f(x', t + h), which is k1 of the next step
    error = h (-5/72 k1 + 6/72 k2 + 8/72 k3 - 9/72 k4)                              x' less a second-order answer

A step to clean data (sigma = 0) does not evaluate the network on data without noise: its error comes from k1, k2 and k3
alone, error = h (1/9 k1 - 3/9 k2 + 2/9 k3), also third order less second order. A step is accepted where

    e = rms(error / (atol + rtol max(|x|, |x'|))) <= 1

and the next is as long as a PID controller says (Söderlind 2003), with e1, e2 the errors of the accepted steps before:

    h_next = h clip(safety e^-(I + P + D)/3 e1^(P + 2 D)/3 e2^-D/3)

This is an instrument more than a product: it finds where steps are needed and how many, makes reference solutions, and
its cost depends on the data. For a fixed cost, fit a grid once (`fitted`).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nova_jax.diffusion import prediction, schedules
from nova_jax.sampling import sampler as samplers
from nova_jax.types import Denoiser, Keys, Sampled, Samples, Time

ORDER = 3  # of the local error of the second-order answer
STAGES = 3  # evaluations of an attempt, k1 known
SHORTEST, LONGEST = 0.2, 5.0  # how much a step may differ from the one before


class State(NamedTuple):
    """What an adaptive solver knows between two steps, each number per sample."""

    slope: Samples
    slope_time: Float[Array, " b"]  # where `slope` is the velocity; NaN where it is none
    size: Float[Array, " b"]  # of the next step, without its sign
    errors: Float[Array, "b 2"]  # e1, e2
    accepted: Int[Array, " b"]
    rejected: Int[Array, " b"]
    forced: Int[Array, " b"]  # steps taken without regard to their error because `max_nfe` was near
    nfe: Int[Array, ""]
    intervals: Int[Array, ""]  # of the outer grid, still to come
    highest_cost: Int[Array, ""]  # of an evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive(samplers.Sampler):
    """Third order with steps chosen by an error estimate, between every two times of the grid, which may be [1, 0].

    Rejected steps cost as much as accepted ones and are counted. When `max_nfe` comes near, what is left up to the next
    time of the grid is taken in one step, whatever its error: the end is reached in any case, with at most `max_nfe`
    evaluations if that is at least 3 for every step of the grid and 1 more (times the highest cost of the denoiser).
    `State.forced`, which `integrate` returns, tells when this happened.

    Attributes:
        rtol: the error allowed relative to x.
        atol: the error allowed where x is small.
        max_nfe: the evaluations that may be spent in all.
        norm: "sample" gives each sample its own steps, so that its result does not depend on its batch; "batch" takes
            the same steps for all, with one error over the whole batch. A sample that arrived early waits for the
            slowest, and NFE counts the rounds that all of them go through.
        first_step: the length of the first attempt, in time.
        max_step: the length that no step exceeds.
        safety: how much shorter a step is than the estimate says.
        pid: the controller's (P, I, D).
    """

    rtol: float = 1e-3
    atol: float = 1e-3
    max_nfe: int = 1000
    norm: str = "sample"
    first_step: float = 0.05
    max_step: float = 0.25
    safety: float = 0.9
    pid: tuple[float, float, float] = (0.3, 0.4, 0.0)

    def __post_init__(self) -> None:
        if not (self.rtol >= 0 and self.atol >= 0 and self.rtol + self.atol > 0):
            raise ValueError(f"rtol and atol must be at least 0 and not both 0, got {self.rtol} and {self.atol}")
        if self.max_nfe < STAGES + 1:
            raise ValueError(f"max_nfe must be at least {STAGES + 1}, one step of this method, got {self.max_nfe}")
        if self.norm not in ("sample", "batch"):
            raise ValueError(f"unknown norm {self.norm!r}: use sample or batch")
        if not (0 < self.first_step <= 1 and 0 < self.max_step <= 1 and 0 < self.safety <= 1):
            raise ValueError(
                "first_step, max_step and safety must lie in (0, 1], got "
                f"{self.first_step}, {self.max_step} and {self.safety}"
            )
        if len(self.pid) != 3 or not sum(self.pid) > 0:
            raise ValueError(f"pid must be three numbers (P, I, D) with a sum above 0, got {self.pid}")

    def init(self, problem: samplers.Problem, x: Samples, times: Float[Array, " n"]) -> State:
        """No slope yet, the first step's length, and errors that change nothing."""
        each = jnp.zeros(x.shape[0], times.dtype)
        count = jnp.zeros(x.shape[0], jnp.int32)
        return State(
            slope=jnp.zeros_like(x),
            slope_time=each + jnp.nan,
            size=each + self.first_step,
            errors=jnp.ones((x.shape[0], 2), times.dtype),
            accepted=count,
            rejected=count,
            forced=count,
            nfe=jnp.int32(0),
            intervals=jnp.sum(times[1:] != times[:-1], dtype=jnp.int32),
            highest_cost=jnp.max(jax.vmap(problem.evaluations)(jnp.linspace(times[0], times[-1], 65))),
        )

    def step(
        self, problem: samplers.Problem, x: Samples, t: Time, t_next: Time, state: State, keys: Keys
    ) -> samplers.Step:
        """From t to t_next in as many steps as it takes."""
        spent_before = state.nfe
        reserve = STAGES * state.highest_cost * (state.intervals + 1)  # this attempt, and one to finish each interval

        known = jnp.all(state.slope_time == t)
        slope = jax.lax.cond(known, lambda: state.slope, lambda: problem.velocity(x, t).astype(x.dtype))
        state = state._replace(slope=slope, nfe=state.nfe + jnp.where(known, 0, problem.evaluations(t)))

        def attempt(carry: tuple) -> tuple:
            x, now, state, attempts = carry
            # Attempts are counted too: the loop must end also where evaluations are declared to be free.
            is_last = (state.nfe + reserve > self.max_nfe) | (STAGES * (attempts + 2) > self.max_nfe)
            x, now, state = self._attempt(problem, x, now, t_next, is_last, state)
            return x, now, state, attempts + 1

        def is_on_the_way(carry: tuple) -> Bool[Array, ""]:
            return jnp.any(carry[1] != t_next)

        carry = (x, jnp.broadcast_to(t, x.shape[:1]), state, jnp.int32(0))
        x, now, state, _ = jax.lax.while_loop(is_on_the_way, attempt, carry)
        ends_clean = problem.schedule.sigma(t_next) == 0  # where the last slope was not evaluated
        slope_time = jnp.where(ends_clean, jnp.nan, now)
        state = state._replace(slope_time=slope_time, intervals=state.intervals - 1)
        return samplers.Step(x, state, state.nfe - spent_before)

    def _attempt(
        self, problem: samplers.Problem, x: Array, now: Array, t_next: Array, is_last: Array, state: State
    ) -> tuple[Array, Array, State]:
        """One step of every sample that has not arrived, kept where its error allows."""
        moving = now != t_next
        left = t_next - now
        size = jnp.minimum(state.size, self.max_step)
        arrives = is_last | (jnp.abs(left) <= size * (1 + 1e-3))  # no sliver of a step is left over
        after = jnp.where(arrives, t_next, now + jnp.sign(left) * size)
        x_new, slope_new, error, cost = _bogacki_shampine(problem, x, now, after, state.slope)

        scale = self.atol + self.rtol * jnp.maximum(jnp.abs(x), jnp.abs(x_new))
        squares = jnp.mean(jnp.square(error / scale), axis=tuple(range(1, x.ndim)))
        if self.norm == "batch":
            squares = jnp.broadcast_to(jnp.mean(squares), squares.shape)
        e = jnp.where(jnp.isfinite(squares), jnp.sqrt(squares), jnp.inf)
        good = e <= 1
        taken, refused = moving & (good | is_last), moving & ~(good | is_last)

        e = jnp.clip(e, 1e-6, 1e6).astype(now.dtype)
        p, i, d = self.pid
        before, long_before = state.errors[:, 0], state.errors[:, 1]
        accepted_factor = e ** (-(p + i + d) / ORDER) * before ** ((p + 2 * d) / ORDER) * long_before ** (-d / ORDER)
        refused_factor = jnp.minimum(e ** (-1 / ORDER), 1)
        factor = jnp.clip(self.safety * jnp.where(good, accepted_factor, refused_factor), SHORTEST, LONGEST)
        new_size = factor * jnp.abs(after - now)
        new_size = jnp.where(good & arrives, jnp.maximum(new_size, size), new_size)  # cut short by the grid, not by e

        def keep(new: Array, old: Array) -> Array:
            return jnp.where(prediction.right_pad(taken, new), new, old)

        return (
            keep(x_new, x),
            jnp.where(taken, after, now),
            state._replace(
                slope=keep(slope_new, state.slope),
                size=jnp.where(moving, new_size, state.size),
                errors=jnp.where(taken[:, None], jnp.stack([e, before], axis=1), state.errors),
                accepted=state.accepted + taken,
                rejected=state.rejected + refused,
                forced=state.forced + (taken & ~good),
                nfe=state.nfe + jnp.max(jnp.where(moving, cost, 0)),
            ),
        )


def integrate(
    denoiser: Denoiser,
    x: Samples,
    *,
    sampler: Adaptive,
    schedule: schedules.Schedule,
    cond: Any = None,
    start: float = 1.0,
    stop: float = 0.0,
) -> tuple[Sampled, State]:
    """Solves from one time to another; the state counts accepted, rejected and forced steps of every sample."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    problem = samplers.Problem(denoiser, cond, schedule)
    times = jnp.asarray([start, stop], x.dtype)
    step = sampler.step(problem, x, times[0], times[1], sampler.init(problem, x, times), None)
    return Sampled(x=step.x, nfe=step.nfe), step.state


def _bogacki_shampine(
    problem: samplers.Problem, x: Array, now: Array, after: Array, k1: Array
) -> tuple[Array, Array, Array, Int[Array, " b"]]:
    """The state and slope at `after`, the error, and what was spent; each sample from its own time to its own."""
    h = prediction.right_pad(after - now, x)
    is_clean = problem.schedule.sigma(after) == 0
    clean = prediction.right_pad(is_clean, x)
    cost_at = jax.vmap(problem.evaluations)
    middle, late = now + (after - now) / 2, now + 3 * (after - now) / 4
    k2 = _velocity(problem, x + h / 2 * k1, middle)
    k3 = _velocity(problem, x + 3 * h / 4 * k2, late)
    x_new = x + h * (2 * k1 + 3 * k2 + 4 * k3) / 9

    safe = jnp.where(is_clean, now, after)
    k4 = jax.lax.cond(jnp.all(is_clean), lambda: k3, lambda: _velocity(problem, x_new, safe))
    with_k4, without = (-5 * k1 + 6 * k2 + 8 * k3 - 9 * k4) / 72, (k1 - 3 * k2 + 2 * k3) / 9
    error = h * jnp.where(clean, without, with_k4)
    last = jnp.where(jnp.all(is_clean), 0, cost_at(safe))
    return x_new, jnp.where(clean, k3, k4), error, cost_at(middle) + cost_at(late) + last


def _velocity(problem: samplers.Problem, x: Array, t: Float[Array, " b"]) -> Array:
    """`Problem.velocity`, with a time for each sample."""
    x0, eps = problem.denoiser(x, t, problem.cond)
    t = prediction.right_pad(t, x)
    return (problem.schedule.d_alpha(t) * x0 + problem.schedule.d_sigma(t) * eps).astype(x.dtype)
