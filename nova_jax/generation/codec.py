"""Pixels to latents and back, through a run's autoencoder: uint8 0 .. 255 outside, normalised latents inside."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from nova_jax.generation import placement
from nova_jax.models import tiling
from nova_jax.runs.load import TrainedRun
from nova_jax.types import Params


def to_latents(trained: TrainedRun, pixels: UInt8[np.ndarray, "b f h w 3"]) -> Float32[np.ndarray, "b g i j c"]:
    """Normalised latents of images or clips, each by itself.

    Raises:
        ValueError: a size that the autoencoder does not compress to whole latents.
    """
    encode, params = make_encode(trained.codec), trained.codec_params
    return np.concatenate([placement.on_host(placement.call(trained, encode, params, clip[None])) for clip in pixels])


@functools.lru_cache(maxsize=8)
def make_encode(codec: Any) -> Any:
    """The jitted path from pixels (b, f, h, w, 3), uint8 or float in [-1, 1], to normalised latents of their mean."""

    def encode(params: Params, pixels: jax.Array) -> jax.Array:
        if pixels.dtype == jnp.uint8:
            pixels = pixels.astype(jnp.float32) / 127.5 - 1.0
        return codec.normalize(codec.encode(params, pixels)[0])

    return jax.jit(encode)


def decode(trained: TrainedRun, latents: Any) -> UInt8[np.ndarray, "b f h w 3"]:
    """Pixels of normalised latents b f i j c, on the host of every process; in tiles where the run has them."""
    if trained.tiles is None:
        pixels = placement.call(trained, make_decode(trained.codec), trained.codec_params, latents)
        return placement.on_host(pixels)
    (pixels,) = _decode_tiles(trained, [placement.on_host(latents)])
    return pixels


@functools.lru_cache(maxsize=8)
def make_decode(codec: Any) -> Any:
    """The jitted path from latents to uint8 pixels: (codec parameters, latents) -> (b, f, h, w, 3)."""

    def decode(params: Params, latents: jax.Array) -> jax.Array:
        return to_uint8(codec.decode(params, codec.denormalize(placement.constrain_rows(latents))))

    return jax.jit(decode)


def decode_stream(
    trained: TrainedRun, latents: Float32[np.ndarray, "f i j c"]
) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """Yields the frames of one clip's latents, those of one latent frame at a time, in constant memory."""
    chunks = [latents[None, frame : frame + 1] for frame in range(len(latents))]
    if trained.tiles is not None:
        yield from (pixels[0] for pixels in _decode_tiles(trained, chunks))
        return
    decode, cache = _make_decode_chunk(trained.codec), None
    for chunk in chunks:
        pixels, cache = placement.call(trained, decode, trained.codec_params, chunk, cache)
        yield placement.on_host(pixels)[0]


def _decode_tiles(trained: TrainedRun, chunks: Sequence[np.ndarray]) -> Iterator[UInt8[np.ndarray, "b n h w 3"]]:
    """The pixels of each chunk of one clip's latents, tile by tile."""
    assert trained.tiles is not None
    shown = (np.asarray(trained.codec.denormalize(jnp.asarray(chunk))) for chunk in chunks)
    blended = tiling.decode_stream(trained.codec, trained.codec_params, shown, trained.tiles, mesh=trained.mesh)
    yield from (np.asarray(to_uint8(pixels)) for pixels in blended)


@functools.lru_cache(maxsize=8)
def _make_decode_chunk(codec: Any) -> Any:
    def decode(params: Any, latents: Any, cache: Any) -> tuple[Any, Any]:
        pixels, cache = codec.decode_chunk(params, codec.denormalize(latents), cache)
        return to_uint8(pixels), cache

    return jax.jit(decode)


def to_uint8(pixels: jax.Array) -> jax.Array:
    """Pixels of -1 .. 1 to whole numbers of 0 .. 255."""
    return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
