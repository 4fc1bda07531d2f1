"""Pixels to latents and back, through a run's autoencoder: uint8 0 .. 255 outside, normalised latents inside."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from nova_jax.runs.load import TrainedRun
from nova_jax.types import Params


def to_latents(trained: TrainedRun, pixels: UInt8[np.ndarray, "b f h w 3"]) -> Float32[np.ndarray, "b g i j c"]:
    """Normalised latents of images or clips, each by itself.

    Raises:
        ValueError: a size that the autoencoder does not compress to whole latents.
    """
    encode = make_encode(trained.codec)
    return np.concatenate([np.asarray(encode(trained.codec_params, clip[None])) for clip in pixels])


@functools.lru_cache(maxsize=8)
def make_encode(codec: Any) -> Any:
    """The jitted path from pixels (b, f, h, w, 3), uint8 or float in [-1, 1], to normalised latents of their mean."""

    def encode(params: Params, pixels: jax.Array) -> jax.Array:
        if pixels.dtype == jnp.uint8:
            pixels = pixels.astype(jnp.float32) / 127.5 - 1.0
        return codec.normalize(codec.encode(params, pixels)[0])

    return jax.jit(encode)


@functools.lru_cache(maxsize=8)
def make_decode(codec: Any) -> Any:
    """The jitted path from latents to uint8 pixels: (codec parameters, latents) -> (b, f, h, w, 3)."""
    return jax.jit(lambda params, latents: to_uint8(codec.decode(params, codec.denormalize(latents))))


def decode_stream(
    trained: TrainedRun, latents: Float32[np.ndarray, "f i j c"]
) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """Yields the frames of one clip's latents, those of one latent frame at a time, in constant memory."""
    decode, cache = _make_decode_chunk(trained.codec), None
    for frame in range(len(latents)):
        pixels, cache = decode(trained.codec_params, latents[None, frame : frame + 1], cache)
        yield np.asarray(pixels)[0]


@functools.lru_cache(maxsize=8)
def _make_decode_chunk(codec: Any) -> Any:
    def decode(params: Any, latents: Any, cache: Any) -> tuple[Any, Any]:
        pixels, cache = codec.decode_chunk(params, codec.denormalize(latents), cache)
        return to_uint8(pixels), cache

    return jax.jit(decode)


def to_uint8(pixels: jax.Array) -> jax.Array:
    """Pixels of -1 .. 1 to whole numbers of 0 .. 255."""
    return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
