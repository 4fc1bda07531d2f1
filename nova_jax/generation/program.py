"""A trained network as the jitted sampling from noise to latents: guided, and holding the frames that are known."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from nova_jax import sampling
from nova_jax.diffusion import denoiser, given_frames, guidance, schedules
from nova_jax.sampling import noise
from nova_jax.types import Conditioning, Denoised, Denoiser, Params, Sampled


def guidance_of(scale: float) -> bool | None:
    """The kind of program for a scale: None, the condition left out (0); False, it alone (1); True, both."""
    return None if scale == 0 else scale != 1


def make_denoiser(
    network: Any, params: Params, objective: Any, null: Conditioning, guided: bool | None, scale: Any, interval: Any
) -> Denoiser:
    """The network as a guided denoiser of encoded prompts; one that reads the scale is evaluated once."""

    def apply(params: Params, x: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        return network.apply({"params": params}, x, t, cond)

    plain = denoiser.make_denoiser(apply, params, objective.schedule, objective.prediction)
    if reads_guidance(network):
        return _with_scale(plain, scale)
    scale = scale if guided else 0 if guided is None else 1
    return guidance.classifier_free(plain, scale, guidance.negative(null), interval=interval if guided else None)


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
    guided: bool | None,
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
        schedule, eps = objective.schedule, noise.initial_noise(seeds, latent_shape)
        guided_denoiser = make_denoiser(network, params, objective, null, guided, scale, interval)
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
