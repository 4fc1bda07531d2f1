"""Encoder and decoder of the causal video autoencoder (see `vae.VAE`), written for one chunk of video.

Every layer that looks back in time maps (x, cache) to (y, cache). The cache holds the last frames the layer has seen,
in a dict nested like the parameters; None starts a video. The first frame stands alone where time is halved or doubled:

    halved     y_0 = x_0,   y_i = C(x_{2i-2}, x_{2i-1}, x_{2i})               1 + 2n frames -> 1 + n
    doubled    y_0 = x_0,   (y_{2i-1}, y_{2i}) = C(x_{i-2}, x_{i-1}, x_i)     1 + n frames -> 1 + 2n, 0 for x_0 inside C

Papers: Wan (Wan team 2025, arXiv 2503.20314, section 4.1) for the causal autoencoder and its cache; DC-AE (Chen et al.
2024, arXiv 2410.10733) for the parameter-free shortcuts between channels and space ("residual autoencoding").
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.layers import attention
from nova_jax.layers.convolution import CausalConv, FrameConv, repeat_pixels

Video = Float[Array, "b f h w c"]
Resized = Float[Array, "b g i j d"]
Cache = Mapping[str, Any]
Factors = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What all parts of one network share.

    Attributes:
        taps: frames that a convolution in time sees: 3, or 1 when frames are independent.
        has_attention: attention among pixels at the lowest resolution.
        has_shortcuts: parameter-free shortcuts around the levels; without them upsampling halves the channels.
        dtype: of the computation.
    """

    taps: int
    has_attention: bool
    has_shortcuts: bool
    dtype: Any

    def conv(self, features: int, name: str, **fields: Any) -> CausalConv:
        """The convolution in space and time of this network."""
        return CausalConv(features, (self.taps, 3, 3), dtype=self.dtype, name=name, **fields)


def norm(x: Video, name: str) -> Video:
    """Divides by the root mean square over channels and multiplies by a gain, in float32."""
    return nn.RMSNorm(epsilon=1e-12, dtype=jnp.float32, name=name)(x).astype(x.dtype)


class ResidualBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))); the second convolution starts at zero."""

    features: int
    variant: Variant

    @nn.compact
    def __call__(self, x: Video, cache: Cache | None) -> tuple[Resized, Cache]:
        """One chunk."""
        past, new = cache or {}, {}
        conv_1 = self.variant.conv(self.features, "conv_1")
        conv_2 = self.variant.conv(self.features, "conv_2", kernel_init=nn.initializers.zeros)
        h, new["conv_1"] = conv_1(nn.silu(norm(x, "norm_1")), past.get("conv_1"))
        h, new["conv_2"] = conv_2(nn.silu(norm(h, "norm_2")), past.get("conv_2"))
        if x.shape[-1] != self.features:
            x = FrameConv(self.features, 1, dtype=self.variant.dtype, name="shortcut")(x)
        return x + h, new


class FrameAttention(nn.Module):
    """x + single-head self-attention among the pixels of each frame."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Video) -> Video:
        """Frames do not see each other."""
        b, f, h, w, c = x.shape
        y = norm(x, "norm")
        query, key, value = (
            FrameConv(c, 1, dtype=self.dtype, name=name)(y).reshape(b * f, h * w, 1, c)
            for name in ("query", "key", "value")
        )
        y = attention.attend(query, key, value).reshape(x.shape)
        return x + FrameConv(c, 1, dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(y)


class Middle(nn.Module):
    """The blocks at the lowest resolution: residual, attention (optional), residual."""

    variant: Variant

    @nn.compact
    def __call__(self, x: Video, cache: Cache | None) -> tuple[Resized, Cache]:
        """One chunk."""
        past, new = cache or {}, {}
        x, new["block_0"] = ResidualBlock(x.shape[-1], self.variant, name="block_0")(x, past.get("block_0"))
        if self.variant.has_attention:
            x = FrameAttention(self.variant.dtype, name="attention")(x)
        x, new["block_1"] = ResidualBlock(x.shape[-1], self.variant, name="block_1")(x, past.get("block_1"))
        return x, new


class Downsample(nn.Module):
    """Halves height and width by a strided convolution, then time by another, each where its factor is 2."""

    factors: Factors
    dtype: Any

    @nn.compact
    def __call__(self, x: Video, cache: Cache | None) -> tuple[Resized, Cache]:
        """One chunk; the first frame of a video passes the time convolution unchanged."""
        time, space = self.factors
        if space == 2:
            x = FrameConv(x.shape[-1], stride=2, dtype=self.dtype, name="conv")(x)
        if time == 1:
            return x, {}
        if cache is None:
            first, rest, past = x[:, :1], x[:, 1:], x[:, :1]
        else:
            first, rest, past = x[:, :0], x, cache["time_conv"]
        y, past = CausalConv(x.shape[-1], (3, 1, 1), 2, dtype=self.dtype, name="time_conv")(rest, past)
        return jnp.concatenate([first, y], axis=1), {"time_conv": past}


class Upsample(nn.Module):
    """Doubles time by a convolution that makes two frames of one, then space by repetition, where a factor is 2."""

    features: int
    factors: Factors
    dtype: Any

    @nn.compact
    def __call__(self, x: Video, cache: Cache | None) -> tuple[Resized, Cache]:
        """One chunk; the first frame of a video is neither doubled nor seen by the time convolution."""
        (time, space), new = self.factors, {}
        if time == 2:
            first, rest = (x[:, :1], x[:, 1:]) if cache is None else (x[:, :0], x)
            b, f, h, w, c = rest.shape
            time_conv = CausalConv(2 * c, (3, 1, 1), dtype=self.dtype, name="time_conv")
            y, new["time_conv"] = time_conv(rest, (cache or {}).get("time_conv"))
            y = jnp.moveaxis(y.reshape(b, f, h, w, 2, c), 4, 2).reshape(b, 2 * f, h, w, c)
            x = jnp.concatenate([first, y], axis=1)
        if space == 2:
            x = FrameConv(self.features, dtype=self.dtype, name="conv")(repeat_pixels(x))
        return x, new


def average_down(x: Video, features: int, time: int, space: int) -> Resized:
    """Folds time x space x space neighbours into channels and averages groups of channels down to `features`.

    Frames are grouped from the last one back; a first frame that stands alone is grouped with zeros.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    b, f, h, w, c = x.shape
    if c * time * space**2 % features:
        raise ValueError(f"no shortcut from {c} to {features} channels: {c * time * space**2} is not a multiple of it")
    x = x.reshape(b, f // time, time, h // space, space, w // space, space, c)
    x = x.transpose(0, 1, 3, 5, 7, 2, 4, 6)
    return jnp.mean(x.reshape(*x.shape[:4], features, -1), axis=-1)


def repeat_up(x: Video, features: int, time: int, space: int) -> Resized:
    """Repeats channels and unfolds them into time x space x space neighbours: `average_down` transposed and scaled."""
    b, f, h, w, c = x.shape
    if features * time * space**2 % c:
        raise ValueError(f"no shortcut from {c} channels: {features * time * space**2} is not a multiple of it")
    x = jnp.repeat(x, features * time * space**2 // c, axis=-1)
    x = x.reshape(b, f, h, w, features, time, space, space).transpose(0, 1, 5, 2, 6, 3, 7, 4)
    return x.reshape(b, f * time, h * space, w * space, features)


class DownLevel(nn.Module):
    """Residual blocks, then a lower resolution by (time, space) factors."""

    features: int
    num_blocks: int
    factors: Factors
    variant: Variant

    @nn.compact
    def __call__(self, x: Video, cache: Cache | None) -> tuple[Resized, Cache]:
        """One chunk."""
        past, new, start = cache or {}, {}, x
        for name in (f"block_{i}" for i in range(self.num_blocks)):
            x, new[name] = ResidualBlock(self.features, self.variant, name=name)(x, past.get(name))
        time, space = self.factors
        if self.factors != (1, 1):
            downsample = Downsample(self.factors, self.variant.dtype, name="downsample")
            x, new["downsample"] = downsample(x, past.get("downsample"))
        if self.variant.has_shortcuts:
            x = x + average_down(start, self.features, time, space)
        return x, new


class UpLevel(nn.Module):
    """Residual blocks, then a higher resolution by (time, space) factors."""

    features: int
    num_blocks: int
    factors: Factors
    variant: Variant

    @nn.compact
    def __call__(self, x: Video, cache: Cache | None) -> tuple[Resized, Cache]:
        """One chunk."""
        past, new, start = cache or {}, {}, x
        for name in (f"block_{i}" for i in range(self.num_blocks)):
            x, new[name] = ResidualBlock(self.features, self.variant, name=name)(x, past.get(name))
        time, space = self.factors
        if self.factors == (1, 1):
            return x, new
        features = self.features if self.variant.has_shortcuts else self.features // 2
        upsample = Upsample(features, self.factors, self.variant.dtype, name="upsample")
        x, new["upsample"] = upsample(x, past.get("upsample"))
        if self.variant.has_shortcuts:
            lone = time - 1 if cache is None else 0  # the first frame of a video is not doubled
            x = x + repeat_up(start, features, time, space)[:, lone:]
        return x, new


class Encoder(nn.Module):
    """Pixels folded into patches to `out_channels` channels per latent pixel.

    Attributes:
        widths: channels at the input and of every level.
        factors: (time, space) by which the resolution falls after each level.
        num_blocks: residual blocks per level.
        out_channels: twice the latent channels.
        variant: see there.
    """

    widths: tuple[int, ...]
    factors: tuple[Factors, ...]
    num_blocks: int
    out_channels: int
    variant: Variant

    @nn.compact
    def __call__(self, x: Video, cache: Cache | None) -> tuple[Resized, Cache]:
        """One chunk: 1 + n frames at the start of a video, n later, n a multiple of the time compression."""
        past, new = cache or {}, {}
        x, new["conv_in"] = self.variant.conv(self.widths[0], "conv_in")(x, past.get("conv_in"))
        for i, (width, factors) in enumerate(zip(self.widths[1:], self.factors, strict=True)):
            name = f"level_{i}"
            x, new[name] = DownLevel(width, self.num_blocks, factors, self.variant, name=name)(x, past.get(name))
        x, new["middle"] = Middle(self.variant, name="middle")(x, past.get("middle"))
        x = nn.silu(norm(x, "norm_out"))
        x, new["conv_out"] = self.variant.conv(self.out_channels, "conv_out")(x, past.get("conv_out"))
        return FrameConv(self.out_channels, 1, dtype=self.variant.dtype, name="quant")(x), new


class Decoder(nn.Module):
    """Latents to pixels folded into patches.

    Attributes:
        widths: channels of the middle and of every level.
        factors: (time, space) by which the resolution rises after each level.
        num_blocks: residual blocks per level.
        out_channels: of the patches.
        variant: see there.
    """

    widths: tuple[int, ...]
    factors: tuple[Factors, ...]
    num_blocks: int
    out_channels: int
    variant: Variant

    @nn.compact
    def __call__(self, x: Video, cache: Cache | None) -> tuple[Resized, Cache]:
        """One chunk of any number of latent frames."""
        past, new = cache or {}, {}
        x = FrameConv(x.shape[-1], 1, dtype=self.variant.dtype, name="post_quant")(x)
        x, new["conv_in"] = self.variant.conv(self.widths[0], "conv_in")(x, past.get("conv_in"))
        x, new["middle"] = Middle(self.variant, name="middle")(x, past.get("middle"))
        for i, (width, factors) in enumerate(zip(self.widths[1:], self.factors, strict=True)):
            name = f"level_{i}"
            x, new[name] = UpLevel(width, self.num_blocks, factors, self.variant, name=name)(x, past.get(name))
        x = nn.silu(norm(x, "norm_out"))
        x, new["conv_out"] = self.variant.conv(self.out_channels, "conv_out")(x, past.get("conv_out"))
        return x, new
