"""What multistep solvers share: the answers of earlier steps, and the integral of the polynomial through them.

Over one step, theta running from 0 to 1, a solver integrates p(theta) against a weight, where p is the polynomial
through f_0 at theta = 0 and earlier answers f_k at nodes theta = r_k < 0 (a corrector adds one at r = 1). In Newton's
form, with the divided differences D_k of (p - f_0) / theta over the nodes,

    p(theta) = f_0 + theta D_1 + theta (theta - r_1) D_2 + theta (theta - r_1) (theta - r_2) D_3

so all that differs between Adams-Bashforth and the exponential integrators is the moments  m_k = int weight theta^k.
A node that is missing, or infinitely far away, drops out together with all older ones: so orders fall at the start.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nova_jax.diffusion import schedules


class History(NamedTuple):
    """The answers of the last n steps, newest first; `place` is time or log-SNR, -inf where there is none yet."""

    place: Float[Array, " n"]
    values: Float[Array, "n b *dims"]
    known: Int[Array, ""]

    def nodes(self, place: Float[Array, ""], length: Float[Array, ""]) -> Float[Array, " n"]:
        """The places seen from a step that starts at `place`, in units of its length; -inf: of no use."""
        usable = jnp.isfinite(self.place) & jnp.isfinite(place) & jnp.isfinite(length)
        away = jnp.where(usable, self.place, 0) - jnp.where(usable, place, 0)
        return jnp.where(usable, away / jnp.where(usable, length, 1), -jnp.inf)

    def push(self, place: Float[Array, ""], value: Float[Array, "b *dims"]) -> "History":
        """Adds the newest answer and forgets the oldest."""
        if not len(self.place):
            return self._replace(known=self.known + 1)
        return History(
            jnp.concatenate([place[None], self.place[:-1]]),
            jnp.concatenate([value[None], self.values[:-1]]),
            self.known + 1,
        )


def empty(length: int, x: Float[Array, "b *dims"]) -> History:
    """No answers yet, room for `length`."""
    return History(jnp.full(length, -jnp.inf, x.dtype), jnp.zeros((length, *x.shape), x.dtype), jnp.int32(0))


def differences(
    start: Float[Array, "b *dims"],
    nodes: Float[Array, " n"],
    values: Float[Array, "n b *dims"],
    used: Bool[Array, " n"],
) -> tuple[Float[Array, " n"], list[Float[Array, "b *dims"]]]:
    """Newton's divided differences D_1 .. D_n; 0 from the first unused node on.

    Returns:
        The nodes, those without use replaced by harmless numbers, and the differences.
    """
    safe: list[Array] = []
    for k in range(len(nodes)):
        apart = -jnp.abs(safe[k - 1]) - 1 if k else -jnp.ones((), nodes.dtype)
        safe.append(jnp.where(used[k], nodes[k], apart))
    column = [(values[k] - start) / safe[k] for k in range(len(nodes))]
    leading = []
    for k in range(len(nodes)):
        leading.append(jnp.where(jnp.all(used[: k + 1]), column[0], 0))
        column = [
            (after - before) / (safe[i + k + 1] - safe[i])
            for i, (before, after) in enumerate(itertools.pairwise(column))
        ]
    return jnp.asarray(safe), leading


def weights(nodes: Float[Array, " n"], moments: Sequence[Array]) -> list[Array]:
    """The integrals of Newton's basis theta, theta (theta - r_1), ...: what D_1, D_2, D_3 are multiplied by.

    Args:
        nodes: r_1 .. r_n, n <= 3.
        moments: the integrals of theta, theta^2, theta^3 against the solver's weight.
    """
    result = [moments[0]]
    if len(nodes) > 1:
        result.append(moments[1] - nodes[0] * moments[0])
    if len(nodes) > 2:
        result.append(moments[2] - (nodes[0] + nodes[1]) * moments[1] + nodes[0] * nodes[1] * moments[0])
    return result[: len(nodes)]


def steps_left(times: Float[Array, " m"], t: Float[Array, ""], schedule: schedules.Schedule) -> Int[Array, ""]:
    """How many steps a falling grid has left from t on, this one included; all m if it ends before clean data.

    Repeated times do not count. Only in front of the singular end, sigma = 0, do falling orders help.
    """
    left = jnp.sum((times[1:] < times[:-1]) & (times[:-1] <= t))
    return jnp.where(schedule.sigma(times[-1]) > 0, len(times), left).astype(jnp.int32)
