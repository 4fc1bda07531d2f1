"""Linear layers: y = x W + b, with W stored as (in, out)."""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from nova_jax.parallel import mesh as meshes
from nova_jax.parallel.constrain import LOGICAL_AXES

Initializer = nn.initializers.Initializer


def matmul(x: Float[Array, "*batch i"], w: Float[Array, "i o"]) -> Float[Array, "*batch o"]:
    """The product x W.

    As a product of two matrices, its autodiff takes the weight gradient as dot(x, g) over the first axis of both, for
    which XLA's CPU back end has a fast kernel. Sharded tokens stay apart from the batch: merging would gather them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if any(mesh.shape.get(axis, 1) > 1 for axis in LOGICAL_AXES["tokens"]):
        return x @ w
    return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])


class Dense(nn.Module):
    """A linear layer with float32 master parameters, computing in `dtype`.

    `saved` names x W, without the bias, for `layers.stack`. The bias then joins what is computed next, where it costs
    nothing; XLA may otherwise write it out for every row, for cuBLAS to add.
    """

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32
    saved: str | None = None

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """Returns x W + b in `dtype`."""
        kernel, bias = self.weights(x.shape[-1])
        y = matmul(x.astype(self.dtype), kernel)
        y = checkpoint_name(y, self.saved) if self.saved else y
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)

    @nn.compact
    def weights(self, inputs: int) -> tuple[Float[Array, "i o"], Float[Array, " o"] | None]:
        """W and b in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        return kernel.astype(self.dtype), None if bias is None else bias.astype(self.dtype)


@jax.custom_jvp
def gelu(x: Float[Array, "*batch i"]) -> Float[Array, "*batch i"]:
    """GELU, x Phi(x), in its tanh form, computed in float32 and returned in the dtype of x.

    With u = sqrt(2 / pi) (x + 0.044715 x^3), it is x (1 + tanh u) / 2 (Hendrycks and Gimpel 2016, arXiv:1606.08415).
    Its derivative is written out, so that the backward pass reads x alone.
    """
    return (0.5 * x.astype(jnp.float32) * (1 + jnp.tanh(_gelu_argument(x)[0]))).astype(x.dtype)


@gelu.defjvp
def _gelu_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    u, slope = _gelu_argument(x)
    # (1 + tanh u) / 2 in its other form: XLA would store a tanh that both this and the function read, in float32.
    half = jax.nn.sigmoid(2 * u)
    derivative = half + 2 * x.astype(jnp.float32) * half * (1 - half) * slope
    return gelu(x), (derivative * dx.astype(jnp.float32)).astype(x.dtype)


def _gelu_argument(x: Array) -> tuple[Array, Array]:
    """The argument u of tanh, and du/dx."""
    x, c = x.astype(jnp.float32), (2 / math.pi) ** 0.5
    return c * (x + 0.044715 * x**3), c * (1 + 3 * 0.044715 * x**2)


def project(x: Float[Array, "*batch i"], layers: Sequence[Dense]) -> list[Float[Array, "*batch o"]]:
    """Several linear layers of one input, alike in their fields.

    Where a tensor axis cuts their features they are one product, whose gradient by x is summed over devices once; apart
    each of them would sum its own.
    """
    if len(layers) == 1 or meshes.current_axes().get("tensor", 1) == 1:
        return [layer(x) for layer in layers]
    kernels, biases = zip(*(layer.weights(x.shape[-1]) for layer in layers), strict=True)
    y = jnp.einsum("...i,sio->s...o", x.astype(layers[0].dtype), jnp.stack(kernels))
    return [part if b is None else part + jnp.broadcast_to(b, part.shape) for part, b in zip(y, biases, strict=True)]
