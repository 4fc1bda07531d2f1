"""Restart: once near the data, go back up to much noise and come down again, several times (arXiv 2306.14878).

when a step ends at t' <= low < t:   repeat `repeats` times
    x at `high` = x' with noise added              (one large draw contracts errors, which many small ones dilute)
    x'          = `inner` from `high` back to t' in `num_steps` steps, uniform in time
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.sampling import heun, noise, sampler
from nova_jax.types import Keys, Samples, Time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restart(sampler.Sampler):
    """Deterministic steps of `inner`, with restarts between two times.

    Attributes:
        inner: The solver of the main path and of the repeated stretch.
        low: The step that ends at or below this time is followed by the restarts.
        high: The time they start from.
        repeats: How many.
        num_steps: Steps of each.
    """

    inner: sampler.Sampler = dataclasses.field(default_factory=heun.Heun)
    low: float = 0.1
    high: float = 0.4
    repeats: int = 2
    num_steps: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.low < self.high < 1:
            raise ValueError(f"restarts need 0 <= low < high < 1, got low={self.low}, high={self.high}")
        if self.repeats < 1 or self.num_steps < self.inner.min_steps:
            raise ValueError(
                f"repeats must be at least 1 and num_steps at least {self.inner.min_steps} (for "
                f"{type(self.inner).__name__}), got {self.repeats} and {self.num_steps}"
            )

    @property
    def stages(self) -> int:
        """Those of the inner solver; restarts come on top."""
        return self.inner.stages

    def init(self, problem: sampler.Problem, x: Samples, times: Float[Array, " n"]) -> Any:
        """What the inner solver remembers."""
        return self.inner.init(problem, x, times)

    def step(self, problem: sampler.Problem, x: Samples, t: Time, t_next: Time, state: Any, keys: Keys) -> sampler.Step:
        """A step of the inner solver, and the restarts if it crosses `low`."""
        keys = noise.required(keys, self)
        first = self.inner.step(problem, x, t, t_next, state, noise.fold_in(keys, 0))
        times = t_next + (self.high - t_next) * jnp.linspace(1, 0, self.num_steps + 1, dtype=t.dtype)

        def repeat(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, nfe = carry
            index_keys = noise.fold_in(keys, index + 1)
            z = noise.normal(noise.fold_in(index_keys, 0), x.shape[1:]).astype(x.dtype)
            x = noise.renoise(x, t_next, times[0], z, problem.schedule)

            def descend(carry: tuple, pair: tuple) -> tuple[tuple, None]:
                x, state, nfe = carry
                count, start, end = pair
                moved = self.inner.step(problem, x, start, end, state, noise.fold_in(index_keys, count + 1))
                return (moved.x, moved.state, nfe + moved.nfe), None

            pairs = (jnp.arange(self.num_steps), times[:-1], times[1:])
            (x, _, nfe), _ = jax.lax.scan(descend, (x, self.inner.init(problem, x, times), nfe), pairs)
            return x, nfe

        crosses = (t > self.low) & (t_next <= self.low)
        x, nfe = jax.lax.cond(
            crosses,
            lambda: jax.lax.fori_loop(0, self.repeats, repeat, (first.x, first.nfe)),
            lambda: (first.x, first.nfe),
        )
        return sampler.Step(x, first.state, nfe)
