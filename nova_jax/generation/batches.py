"""From prompts and seeds to pixels, in batches of a fixed size: encode, sample, decode.

An image depends on its own prompt and seed alone, not on how many there are: its noise comes from the seed, and the
compiled program always sees batches of one size; on a mesh of one size for few and one for many (`placement`), so that
there the last bits of float32 may differ.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32

from nova_jax import sampling
from nova_jax.generation import codec, placement, program
from nova_jax.generation import settings as sampling_settings
from nova_jax.generation.prompts import check_prompts, encode, join
from nova_jax.generation.settings import SamplingSettings
from nova_jax.runs.load import TrainedRun
from nova_jax.sampling import noise
from nova_jax.tasks.limits import Range
from nova_jax.types import Conditioning

ROOM = 32  # steps that a compiled program has room for, at least; fewer cost nothing more
SEEDS = Range(0, 2**32 - 1)

Given = tuple[Float[np.ndarray, "b f h w c"], Bool[np.ndarray, "b f"]]  # known latents, and which of the frames are


def generate(
    trained: TrainedRun,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings | None = None,
    *,
    conditions: Conditioning | None = None,
    negative_prompts: Sequence[str] | None = None,
    given: Given | None = None,
) -> np.ndarray:
    """Samples one image, or clip, per (prompt, seed).

    An image depends on its own prompt and seed alone: the starting noise comes from the seed, and the network always
    sees batches of the same size.

    Args:
        trained: a run.
        prompts: texts.
        seeds: one for each prompt.
        settings: sampler, steps and guidance; None: `settings_for` the run.
        conditions: further conditions, one row each (`tasks.conditions`); None: none. Guidance strengthens the prompt
            and the conditions that say so (`nova_jax.conditions`), such as the palette.
        negative_prompts: what to guide away from, one each; None: from the empty prompt.
        given: frames of the latents that are known, one row each; they come out unchanged.

    Returns:
        uint8 pixels (b, f, h, w, 3).

    Raises:
        ValueError: no prompts, not one seed for each, a seed out of `SEEDS`, a prompt too long or not Unicode, an
            unknown time grid, settings that a student has not learnt.
        FloatingPointError: sampling ended in NaN or infinity; at which step.
    """
    chunks = _draw_chunks(trained, prompts, seeds, settings, conditions, negative_prompts, given)
    return np.concatenate([codec.decode(trained, x)[:count] for x, count in chunks])


def generate_latents(
    trained: TrainedRun,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings | None = None,
    *,
    conditions: Conditioning | None = None,
    negative_prompts: Sequence[str] | None = None,
    given: Given | None = None,
) -> Float32[np.ndarray, "b f h w c"]:
    """As `generate`, but returns the normalised latents."""
    chunks = _draw_chunks(trained, prompts, seeds, settings, conditions, negative_prompts, given)
    return np.concatenate([placement.on_host(x)[:count] for x, count in chunks])


def _draw_chunks(
    trained: TrainedRun,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings | None,
    conditions: Conditioning | None,
    negative_prompts: Sequence[str] | None,
    given: Given | None,
) -> Iterator[tuple[jax.Array, int]]:
    """Latents of `rows_per_call` samples at a time, and how many of them belong to prompts."""
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one or more prompts, each with its seed")
    if wrong := [seed for seed in seeds if not SEEDS.low <= seed <= SEEDS.high]:
        raise ValueError(f"seed is {wrong[0]}; it must be a whole number {SEEDS}")
    check_prompts(trained.text_encoder, [*prompts, *(negative_prompts or ())])
    settings = sampling_settings.settings_for(trained) if settings is None else settings
    sampling_settings.check_settings(trained, settings)
    times = sampling_settings.padded_times(trained, settings, max(settings.num_steps, ROOM))
    kind = program.kind_of(settings.guidance_scale)
    draw = program.make_draw(
        trained.network,
        trained.objective,
        sampling.named(settings.sampler),
        kind,
        settings.guidance_interval,
        trained.latent_shape,
    )
    answers = 2 if kind == "guided" and not program.reads_guidance(trained.network) else 1
    start = 0
    while (left := len(prompts) - start) > 0:
        size = placement.rows_per_call(trained.latent_shape, trained.mesh, answers=answers, wanted=left)
        rows = functools.partial(_rows, start=start, size=size)
        negative = None if negative_prompts is None else encode(trained, rows(list(negative_prompts)))[0]
        extra = jax.tree.map(rows, conditions or Conditioning())
        pair = join(encode(trained, rows(list(prompts))), extra, negative)
        frames = None if given is None else (*map(rows, given), np.float32(settings.given_noise))
        chosen = np.asarray(rows(np.asarray(seeds, np.uint32)))
        arguments = (*pair, chosen, times, np.float32(settings.guidance_scale), frames)
        latents = placement.call(trained, draw, trained.params, *arguments).x
        if not placement.call(trained, _is_finite, latents):
            explain_nonfinite(trained, settings, pair, chosen.tolist(), frames)
        yield latents, min(size, left)
        start += size


@jax.jit
def _is_finite(x: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(x))


def _rows(values: Any, *, start: int, size: int) -> Any:
    """So many rows from `start` on, the missing ones empty."""
    if isinstance(values, list):
        chunk = list(values[start : start + size])
        return chunk + [""] * (size - len(chunk))
    chunk = np.asarray(values)[start : start + size]
    return np.concatenate([chunk, np.zeros((size - len(chunk), *chunk.shape[1:]), chunk.dtype)])


def explain_nonfinite(
    trained: TrainedRun,
    settings: SamplingSettings,
    pair: tuple[Conditioning, Conditioning],
    seeds: Sequence[int],
    given: Any = None,
) -> None:
    """Raises FloatingPointError: where sampling left the finite numbers, or that the guided network is not at fault."""
    if jax.process_count() > 1:
        raise FloatingPointError(f"{settings.sampler} ended in numbers that are not finite; one process can say where")
    cond, null = pair
    schedule, times = trained.objective.schedule, sampling_settings.time_grid(trained, settings)
    kind = program.kind_of(settings.guidance_scale)
    scale, interval = settings.guidance_scale, settings.guidance_interval
    denoise = program.make_denoiser(trained.network, trained.params, trained.objective, null, kind, scale, interval)
    eps = noise.initial_noise(np.asarray(seeds, np.uint32), trained.latent_shape)
    with placement.scope(trained):
        sampling.check_finite(
            program.holding(denoise, given, schedule, eps),
            noise.start(eps, times[0], schedule),
            sampler=sampling.named(settings.sampler),
            times=times,
            schedule=schedule,
            cond=cond,
            key=noise.keys_from_seeds(np.asarray(seeds, np.uint32)),
        )
    raise FloatingPointError(f"{settings.sampler} ended in numbers that are not finite, but not when walked again")
