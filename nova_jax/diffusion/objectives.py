"""The training loss: a network learns one prediction about x_t, at random times, from clean data.

    t ~ time_sampling,   eps ~ N(0, I),   x_t = alpha(t) x0 + sigma(t) eps
    loss = mean w(t) || network(x_t, t, dropped cond) - target(x0, eps, t) ||^2

With the defaults the target is the velocity eps - x0 of rectified flow: flow matching (Lipman et al. 2022, arXiv
2210.02747, eq. 23; Esser et al. 2024, 2403.03206). Other schedules and predictions make it any Gaussian diffusion. The
minimiser is the conditional mean of the target given x_t.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from nova_jax.diffusion import conditioning, given_frames, schedules
from nova_jax.diffusion import prediction as predictions
from nova_jax.diffusion import time_sampling as time_samplings
from nova_jax.diffusion import weighting as weightings
from nova_jax.types import Batch, Denoised, Metrics, Network, Params


@runtime_checkable
class DenoisingObjective(Protocol):
    """What a denoiser was trained for, as those who sample from it must know; a distillation method declares it too."""

    @property
    def schedule(self) -> schedules.Schedule:
        """Of x_t."""
        ...

    @property
    def prediction(self) -> predictions.Kind:
        """Of the network."""
        ...

    @property
    def drop_rates(self) -> conditioning.DropRates:
        """Of the conditions; where a rate is 0, the network has not learnt the null condition."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """The denoising loss over a batch; its times, noise and drops depend on the key alone, not on any sharding.

    Metrics: `loss`; and, over `num_bins` equal bins of t, `loss_by_time`, what each bin adds to the loss, and
    `share_by_time`, its share of the batch. Both are means over the batch, so they may be averaged further, over parts
    of a batch or over steps; their ratio is then the mean loss in each bin that was visited.

    With `given`, some frames of a batch of videos are given to the network and do not count: the error of a sample is
    its mean over the other frames.
    """

    schedule: schedules.Schedule = dataclasses.field(default_factory=schedules.RectifiedFlow)
    prediction: predictions.Kind = "velocity"
    time_sampling: time_samplings.TimeSampling = dataclasses.field(default_factory=time_samplings.LogitNormal)
    weighting: weightings.Weighting = dataclasses.field(default_factory=weightings.Constant)
    drop_rates: conditioning.DropRates = dataclasses.field(default_factory=conditioning.DropRates)
    is_stratified: bool = True  # times cover their distribution evenly in every batch
    has_frame_times: bool = False  # each frame at its own noise level (Chen et al. 2024, arXiv 2407.01392)
    given: given_frames.GivenFrames | None = None  # frames that the network sees, as for image to video
    num_bins: int = 4

    def __post_init__(self) -> None:
        predictions.check(self.prediction)
        if self.num_bins < 0:
            raise ValueError(f"num_bins must be 0 (no report) or more, got {self.num_bins}")

    def __call__(
        self, network: Network, params: Params, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]:
        """The loss of `network(params, x_t, t, cond)` on one batch, in float32, and its metrics."""
        key_time, key_noise, key_drop = jax.random.split(key, 3)
        x0 = batch.x0.astype(jnp.float32)
        t = self.sample_times(key_time, x0.shape)
        shown, counts = t, None
        if self.given is not None and x0.shape[1] > 1:
            key_noise, key_given = jax.random.split(key_noise)
            t = jnp.broadcast_to(t.reshape(t.shape[0], -1), x0.shape[:2])
            shown, counts = self.given.sample(key_given, t)
        eps = jax.random.normal(key_noise, x0.shape)
        x_t = predictions.add_noise(x0, eps, shown, self.schedule)
        target = predictions.target_from(self.prediction, Denoised(x0, eps), shown, self.schedule)

        predicted = network(params, x_t, shown, conditioning.drop(batch.cond, key_drop, self.drop_rates))
        squared = (predicted.astype(jnp.float32) - target) ** 2
        error = squared.reshape(*t.shape, -1).mean(axis=-1)
        weighted = self.weighting(self.prediction, t, self.schedule) * error
        if counts is not None:
            weighted = counts * weighted
        loss = weighted.mean()
        return loss, {"loss": loss, **self._bins(t, weighted, counts)}

    def sample_times(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        """One time per sample, or per frame, for latents of this shape."""
        uniforms = time_samplings.stratified if self.is_stratified else time_samplings.independent
        return self.time_sampling.quantile(uniforms(key, shape[:2] if self.has_frame_times else shape[:1]))

    def _bins(self, t: Array, error: Array, counts: Array | None = None) -> Metrics:
        if not self.num_bins:
            return {}
        index = jnp.clip((t * self.num_bins).astype(int), 0, self.num_bins - 1)
        is_in = jax.nn.one_hot(index.reshape(-1), self.num_bins)
        contribution = jnp.einsum("ik,i->k", is_in, error.reshape(-1)) / error.size
        is_in = is_in if counts is None else is_in * counts.reshape(-1, 1)
        return {"loss_by_time": contribution, "share_by_time": is_in.mean(axis=0)}
