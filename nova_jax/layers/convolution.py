"""Causal convolution of video, in one piece or chunk by chunk, and parameter-free changes of resolution.

A convolution with k taps in time and time stride s is causal when no output sees a later frame. Its outputs are the
windows that end at frames s-1, 2s-1, ... of the input:

    y_i = sum_{j=0}^{k-1} W_j * x_{s(i+1) - k + j},        * a 2-D convolution,  x_n = 0 for n < 0

The k - s frames before the first window are all that the past contributes. A video is processed in chunks of any
length by handing the last k - s input frames of one chunk to the next, and the result is that of the whole video. A
single frame without a past meets zeros in all taps but the last, so an image costs one 2-D convolution.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Video = Float[Array, "b f h w c"]
Past = Float[Array, "b p h w c"]


def conv_frames(x: Video, kernel: Float[Array, "u v c d"], *, stride: int = 1) -> Float[Array, "b f i j d"]:
    """2-D convolution of every frame, zero-padded to ceil(size / stride); odd padding goes below and right."""
    if kernel.shape[:2] == (1, 1) and stride == 1:
        return jnp.einsum("bfhwc,cd->bfhwd", x, kernel[0, 0])
    frames = x.reshape(-1, *x.shape[2:])
    y = jax.lax.conv_general_dilated(
        frames, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y.reshape(*x.shape[:2], *y.shape[1:])


def causal_conv(
    x: Video, kernel: Float[Array, "t u v c d"], past: Past | None = None, *, time_stride: int = 1
) -> Float[Array, "b g h w d"]:
    """The module's equation; `past` is what `last_frames` kept of the chunk before, None at the start of a video."""
    taps = kernel.shape[0]
    if x.shape[1] == 0:
        return jnp.zeros((*x.shape[:-1], kernel.shape[-1]), x.dtype)
    if taps == 1 or (past is None and x.shape[1] == 1):
        return conv_frames(x, kernel[-1])
    if past is None:
        past = jnp.zeros((x.shape[0], taps - time_stride, *x.shape[2:]), x.dtype)
    x = jnp.concatenate([past.astype(x.dtype), x], axis=1)

    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(sum_of_taps, time_stride=time_stride),
        default=functools.partial(conv_3d, time_stride=time_stride),
    )


def sum_of_taps(x: Video, kernel: Float[Array, "t u v c d"], *, time_stride: int) -> Float[Array, "b g h w d"]:
    """Unpadded in time, as one 2-D convolution per tap: XLA has no fast 3-D convolution on CPUs."""
    taps = kernel.shape[0]
    end = x.shape[1] - taps + 1
    products = [conv_frames(x[:, j : j + end : time_stride], kernel[j]) for j in range(taps)]
    return functools.reduce(jnp.add, products)


def conv_3d(x: Video, kernel: Float[Array, "t u v c d"], *, time_stride: int) -> Float[Array, "b g h w d"]:
    """The same as one 3-D convolution."""
    pads = [(0, 0), *(((size - 1) // 2, size // 2) for size in kernel.shape[1:3])]
    dims = ("NDHWC", "DHWIO", "NDHWC")
    return jax.lax.conv_general_dilated(x, kernel, (time_stride, 1, 1), pads, dimension_numbers=dims)


def last_frames(x: Video, past: Past | None, count: int) -> Past | None:
    """The last `count` frames seen so far, zeros before the first; None when nothing has to be remembered."""
    if count == 0:
        return None
    missing = count - x.shape[1]
    if missing <= 0:
        return x[:, -count:]
    if past is None:
        past = jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)
    return jnp.concatenate([past[:, count - missing :].astype(x.dtype), x], axis=1)


class FrameConv(nn.Module):
    """2-D convolution of every frame on its own, with bias. The kernel is stored as [1, height, width, in, out]."""

    features: int
    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Video) -> Float[Array, "b f i j d"]:
        """Convolves; parameters are float32, the computation has `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (1, self.size, self.size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = conv_frames(x.astype(self.dtype), kernel[0].astype(self.dtype), stride=self.stride)
        return y + bias.astype(self.dtype).reshape(1, 1, 1, 1, -1)


class CausalConv(nn.Module):
    """Causal convolution with bias. The kernel is stored as [time, height, width, in, out]."""

    features: int
    kernel_size: tuple[int, int, int] = (3, 3, 3)
    time_stride: int = 1
    dtype: Any = jnp.float32
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Video, past: Past | None = None) -> tuple[Float[Array, "b g h w d"], Past | None]:
        """Convolves one chunk that follows `past`; returns the output and the `past` of the next chunk."""
        kernel = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        x = x.astype(self.dtype)
        y = causal_conv(x, kernel.astype(self.dtype), past, time_stride=self.time_stride)
        y = y + bias.astype(self.dtype).reshape(1, 1, 1, 1, -1)
        return y, last_frames(x, past, self.kernel_size[0] - self.time_stride)


def repeat_pixels(x: Video) -> Float[Array, "b f i j c"]:
    """Doubles height and width by repeating each pixel (nearest neighbour)."""
    return jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)


def pixels_to_channels(x: Video, patch_size: int) -> Float[Array, "b f i j d"]:
    """Folds patches of p x p pixels into channels, ordered (channel, column in the patch, row in the patch)."""
    b, f, h, w, c = x.shape
    x = x.reshape(b, f, h // patch_size, patch_size, w // patch_size, patch_size, c)
    return x.transpose(0, 1, 2, 4, 6, 5, 3).reshape(b, f, h // patch_size, w // patch_size, -1)


def channels_to_pixels(x: Video, patch_size: int) -> Float[Array, "b f i j d"]:
    """Inverse of `pixels_to_channels`."""
    b, f, h, w, _ = x.shape
    x = x.reshape(b, f, h, w, -1, patch_size, patch_size)
    return x.transpose(0, 1, 2, 6, 3, 5, 4).reshape(b, f, h * patch_size, w * patch_size, -1)
