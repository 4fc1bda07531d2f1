"""Given frames: the first frame of a video, both of its ends, or its beginning. The others are generated.

    given frames    x_s = alpha(s) x0 + sigma(s) eps     at time s, low: 0 is clean
    free frames     x_t = alpha(t) x0 + sigma(t) eps     at time t

The network sees which frames are given by its time per frame alone, so one set of weights turns text into video, starts
from an image, interpolates and continues. `GivenFrames` is for training, `hold` for sampling: a wrapper of a denoiser,
as guidance is. A noise level for each frame: Chen et al. 2024, Diffusion Forcing, arXiv 2407.01392; the first
frame at time 0: Wan Team 2025, 2503.20314 (Wan 2.2).

A clean first frame tempts the network to copy it where t is large and little else can be seen: videos that stand still.
Zhao et al. 2024 (arXiv 2406.15735) answer with noise on given frames that grows with t (`TimeNoise`, section 4.2) and
with a start below t = 1 (`nova_jax.sampling.noise.start`, section 4.1).
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from nova_jax.diffusion import denoiser as denoisers
from nova_jax.diffusion import prediction as predictions
from nova_jax.diffusion import schedules
from nova_jax.types import Denoised, Denoiser


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimeNoise:
    """The level of given frames in training: logit(s / max_level) ~ N(2 t^exponent - 1, std^2).

    Levels are times here, standard deviations added to clean data in the paper. Where `clean` is 0 hardly any given
    frame is clean: sample with as much noise on given frames as in training, or train a share of clean ones.

    Attributes:
        max_level: the highest level.
        exponent: how late towards t = 1 the levels rise.
        std: their spread.
        clean: the share of samples whose given frames are clean all the same.
    """

    max_level: float = 0.5
    exponent: float = 5.0  # the authors' code, github.com/thu-ml/cond-image-leakage
    std: float = 1.0
    clean: float = 0.0

    def __post_init__(self) -> None:
        if not (0 < self.max_level <= 1 and 0 <= self.clean < 1 and self.exponent > 0 and self.std > 0):
            raise ValueError(
                f"max_level={self.max_level} must lie in (0, 1], clean={self.clean} in [0, 1), "
                f"exponent={self.exponent} and std={self.std} above 0"
            )

    def quantile(self, u: Float[Array, "*dims"], t: Float[Array, "*dims"]) -> Float[Array, "*dims"]:
        """The level below which a share u of the given frames lies at time t; rising in both."""
        center = 2 * t**self.exponent - 1
        noisy = jax.scipy.special.ndtri(jnp.maximum(u - self.clean, 0) / (1 - self.clean))  # -inf, level 0, where clean
        return self.max_level * jax.nn.sigmoid(center + self.std * noisy)


class Drawn(NamedTuple):
    """The given frames of a batch, in the form that the loss needs."""

    times: Float[Array, "b f"]  # of every frame: s where it is given, t elsewhere
    counts: Float[Array, "b f"]  # how much a frame counts in a mean over frames: 0 where given, f / free elsewhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenFrames:
    """The shares of the training samples with given frames, by which ones; the other samples have none.

    Attributes:
        first: the first frame alone.
        ends: the first and the last.
        prefix: the first k, k uniform over 1 .. f - 1.
        guard: noise on given frames against leakage; None: they are clean.
    """

    first: float = 0.3
    ends: float = 0.1
    prefix: float = 0.1
    guard: TimeNoise | None = None

    def __post_init__(self) -> None:
        shares = (self.first, self.ends, self.prefix)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError(f"the shares first, ends and prefix must be at least 0 and at most 1 in all, got {shares}")

    def sample(self, key: PRNGKeyArray, t: Float[Array, "b f"]) -> Drawn:
        """Which frames are given, independently of the data and of the other samples; at least one is free.

        Args:
            key: of the batch.
            t: the time of every frame if none were given; two frames or more.
        """
        key_kind, key_length, key_level = jax.random.split(key, 3)
        b, f = t.shape
        kind = jax.random.uniform(key_kind, (b, 1))
        is_ends = (self.first <= kind) & (kind < self.first + self.ends)
        is_prefix = (self.first + self.ends <= kind) & (kind < self.first + self.ends + self.prefix)
        one_or_none = (kind < self.first + self.ends).astype(jnp.int32)
        length = jnp.where(is_prefix, jax.random.randint(key_length, (b, 1), 1, f), one_or_none)
        place = jnp.arange(f)[None]
        is_given = place < length
        if f > 2:
            is_given = is_given | (is_ends & (place == f - 1))

        level = jnp.zeros_like(t)
        if self.guard is not None:
            level = self.guard.quantile(jnp.broadcast_to(jax.random.uniform(key_level, (b, 1)), t.shape), t)
        free = jnp.sum(~is_given, axis=1, keepdims=True)
        return Drawn(jnp.where(is_given, level, t), jnp.where(is_given, 0.0, f / free))


def hold(
    denoiser: Denoiser,
    latents: Float[Array, "b f h w c"],
    mask: Bool[Array, "b f"],
    noise: float | int | Array = 0.0,
    *,
    schedule: schedules.Schedule,
    eps: Float[Array, "b f h w c"] | None = None,
) -> Denoiser:
    """Keeps given frames as they are, whatever the solver and the denoiser do.

    The denoiser sees the given frames at their own level in place of x's, and their times. Its answer then has them as
    x0, with what remains of x as their noise: to a solver they are data that are known exactly, which it reaches at
    t = 0 up to rounding and the errors of its order (`paste` removes both). A given frame is never noisier than the
    others.

    Guidance works inside (`hold(classifier_free(..), ..)`) and outside; in a batch of a multiple of b rows, such as
    guidance makes, neighbours share a row of `latents`.

    Args:
        denoiser: reads a time per frame, (b, f).
        latents: the given frames; the values of other frames have no effect.
        mask: True where a frame is given.
        noise: s, the time of given frames; scalar or one per sample.
        schedule: that of the denoiser.
        eps: the noise that sampling starts from. Given frames have it at every evaluation, so s > 0 needs it; and it is
            their noise at t = 0, where x holds none.

    Raises:
        ValueError: a level above 0 without `eps`, or outside [0, 1].
    """
    if isinstance(noise, (int, float)) and not 0 <= noise <= 1:
        raise ValueError(f"the noise of given frames is a time in [0, 1], got {noise}")
    is_clean = isinstance(noise, (int, float)) and noise == 0
    if eps is None and not is_clean:
        raise ValueError(f"given frames at time {noise} are noisy: pass eps")

    def denoise(x: Array, t: Array, cond: Any) -> Denoised:
        repeats = x.shape[0] // latents.shape[0]
        known, is_given = (jnp.repeat(a, repeats, axis=0) for a in (latents.astype(x.dtype), mask))
        first = None if eps is None else jnp.repeat(eps.astype(x.dtype), repeats, axis=0)
        times = jnp.broadcast_to(t if t.ndim == 2 else t[:, None], is_given.shape)
        level = jnp.zeros_like(times)
        shown = known
        if first is not None and not is_clean:
            each = jnp.repeat(jnp.broadcast_to(jnp.asarray(noise, t.dtype), mask.shape[:1]), repeats)
            level = jnp.minimum(each[:, None], times)
            shown = predictions.add_noise(known, first, level, schedule)
        chosen = predictions.right_pad(is_given, x)
        answer = denoiser(jnp.where(chosen, shown, x), jnp.where(is_given, level, times), cond)
        held = predictions.denoised_from("x0", known, x, t, schedule)
        if first is not None:
            held = held._replace(eps=jnp.where(schedule.sigma(predictions.right_pad(t, x)) == 0, first, held.eps))
        return jax.tree.map(lambda kept, drawn: jnp.where(chosen, kept.astype(drawn.dtype), drawn), held, answer)

    return denoisers.declare(denoise, lambda t: denoisers.evaluations(denoiser, t))


def paste(
    x: Float[Array, "b f h w c"], latents: Float[Array, "b f h w c"], mask: Bool[Array, "b f"]
) -> Float[Array, "b f h w c"]:
    """The given frames exactly, x elsewhere."""
    return jnp.where(predictions.right_pad(mask, x), latents.astype(x.dtype), x)
