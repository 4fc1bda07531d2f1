"""Linear layers: y = x W + b, with W stored as (in, out)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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

    @nn.compact
    def __call__(self, x: Float[Array, "*batch i"]) -> Float[Array, "*batch o"]:
        """Returns x W + b in `dtype`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        y = matmul(x.astype(self.dtype), kernel.astype(self.dtype))
        if not self.use_bias:
            return y
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)
        return y + jnp.broadcast_to(bias, y.shape)
