"""From a network to a denoiser, the one interface of samplers, guidance and tasks; and what its calls cost.

A denoiser maps (x_t, t, cond) to the pair (x0, eps). Wrappers map a denoiser to a denoiser. The number of network
evaluations (NFE) is counted per sample: a plain denoiser costs 1 per call. A wrapper that calls its denoiser more
often, or only at some times, says so with `declare`, as a function of time; samplers add up what `evaluations`
answers. Every wrapper declares, if only to pass on what it wraps:

    def clipped(denoiser):
        def denoise(x, t, cond): ...
        return declare(denoise, lambda t: evaluations(denoiser, t))
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from nova_jax.diffusion import prediction as predictions
from nova_jax.diffusion import schedules
from nova_jax.types import Denoised, Denoiser, Network, Params

Cost = Callable[[Array], Any]


def make_denoiser(
    network: Network, params: Params, schedule: schedules.Schedule, prediction: predictions.Kind = "velocity"
) -> Denoiser:
    """The denoiser that a trained network is; `schedule` and `prediction` are those of its objective."""
    predictions.check(prediction)

    def denoise(x: Array, t: Array, cond: Any) -> Denoised:
        return predictions.denoised_from(prediction, network(params, x, t, cond), x, t, schedule)

    return denoise


@dataclasses.dataclass(frozen=True)
class Declared:
    """A denoiser with a declared cost."""

    denoise: Denoiser
    evaluations: Cost

    def __call__(self, x: Array, t: Array, cond: Any) -> Denoised:
        """The wrapped denoiser's answer."""
        return self.denoise(x, t, cond)


def declare(denoise: Denoiser, cost: Cost) -> Denoiser:
    """The same denoiser, costing `cost(t)` network evaluations per sample for a call at the scalar time t."""
    return Declared(denoise, cost)


def evaluations(denoiser: Denoiser, t: Float[Array, ""]) -> Int[Array, ""]:
    """The network evaluations per sample that a call at time t costs: 1 where nothing else is declared."""
    cost = denoiser.evaluations(t) if isinstance(denoiser, Declared) else 1
    return jnp.asarray(cost, jnp.int32)
