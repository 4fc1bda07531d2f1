"""Linear layers: y = x W + b, with W stored as (in, out)."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    """A linear layer with float32 master parameters, computing in `dtype`."""

    features: int
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.xavier_uniform()
    bias_init: Initializer = nn.initializers.zeros
    dtype: Any = jnp.float32

    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """Returns x W + b in `dtype`."""
        kernel, bias = self.weights(x.shape[-1])
        y = matmul(x.astype(self.dtype), kernel)
        return y if bias is None else y + jnp.broadcast_to(bias, y.shape)

    @nn.compact
    def weights(self, inputs: int) -> tuple[Float[Array, "i o"], Float[Array, " o"] | None]:
        """W and b in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features), jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        return kernel.astype(self.dtype), None if bias is None else bias.astype(self.dtype)


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
