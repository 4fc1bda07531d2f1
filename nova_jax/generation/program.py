"""A trained network as the jitted sampling from noise to latents: guided, and holding the frames that are known.

On a mesh every evaluation is cut over data and fsdp by its rows. Guidance evaluates both of its answers as one batch of
twice as many rows, so two devices share even a single sample.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from nova_jax import sampling
from nova_jax.diffusion import denoiser, given_frames, guidance, schedules
from nova_jax.generation import placement
from nova_jax.models import text_keys
from nova_jax.sampling import noise
from nova_jax.types import Conditioning, Denoised, Denoiser, Params, Sampled

Guidance = Literal["unconditional", "conditional", "guided"]  # at scale 0, at scale 1, and at all others


def kind_of(scale: float) -> Guidance:
    """The kind of program for a guidance scale: at 0 and 1 the network is evaluated once, without a pair of answers."""
    return "unconditional" if scale == 0 else "conditional" if scale == 1 else "guided"


def make_denoiser(
    network: Any, params: Params, objective: Any, null: Conditioning, kind: Guidance, scale: Any, interval: Any
) -> Denoiser:
    """The network as a guided denoiser of encoded prompts; one that reads the scale is evaluated once."""
    # Rows are joined and parted where their samples lie: across devices, XLA would take many exchanges for it.
    at_samples = functools.partial(
        placement.constrain_rows, answers=2 if kind == "guided" and not reads_guidance(network) else 1
    )

    def apply(params: Params, x: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        return at_samples(network.apply({"params": params}, *placement.constrain_rows((x, t, cond))))

    def plain(x: jax.Array, t: jax.Array, cond: Conditioning) -> Denoised:
        return at_samples(one(*at_samples((x, t, cond))))

    one = denoiser.make_denoiser(apply, params, objective.schedule, objective.prediction)
    if reads_guidance(network):
        return _with_scale(plain, scale)
    if kind != "guided":
        return guidance.classifier_free(plain, 1 if kind == "conditional" else 0, guidance.negative(null))
    return guidance.classifier_free(plain, scale, guidance.negative(null), interval=interval)


def reads_guidance(network: Any) -> bool:
    """Whether guidance is distilled into a network, which reads its scale."""
    return getattr(getattr(network, "dit", network), "has_guidance", False)


def _with_scale(plain: Denoiser, scale: Any) -> Denoiser:
    def denoise(x: jax.Array, t: jax.Array, cond: Conditioning) -> Denoised:
        return plain(x, t, cond._replace(guidance_scale=jnp.broadcast_to(jnp.asarray(scale, t.dtype), t.shape[:1])))

    return denoiser.declare(denoise, lambda t: denoiser.evaluations(plain, t))


@functools.lru_cache(maxsize=32)
def make_draw(
    network: Any,
    objective: Any,
    sampler: sampling.Sampler,
    kind: Guidance,
    interval: tuple[float, float] | None,
    latent_shape: tuple[int, ...],
) -> Any:
    """The jitted path from encoded prompts and seeds to latents: (params, cond, null, seeds, times, scale) -> Sampled.

    Times and scale are data: grids padded to one length share one program. Last, it takes (latents, mask, time) of
    given frames.
    """

    def draw(
        params: Params,
        cond: Conditioning,
        null: Conditioning,
        seeds: jax.Array,
        times: jax.Array,
        scale: jax.Array,
        given: Any = None,
    ) -> Sampled:
        cond, null = (text_keys.with_text_keys(network, params, c) for c in (cond, null))
        schedule, eps = objective.schedule, placement.constrain_rows(noise.initial_noise(seeds, latent_shape))
        guided_denoiser = make_denoiser(network, params, objective, null, kind, scale, interval)
        result = sampling.sample(
            holding(guided_denoiser, given, schedule, eps),
            noise.start(eps, times[0], schedule),
            sampler=sampler,
            times=times,
            schedule=schedule,
            cond=cond,
            key=noise.keys_from_seeds(seeds),
        )
        return result if given is None else result._replace(x=given_frames.paste(result.x, *given[:2]))

    return jax.jit(draw)


def holding(denoise: Denoiser, given: Any, schedule: schedules.Schedule, eps: jax.Array) -> Denoiser:
    """The denoiser that keeps given frames, (latents, mask, time); as it is where there are none."""
    return denoise if given is None else given_frames.hold(denoise, *given, schedule=schedule, eps=eps)
