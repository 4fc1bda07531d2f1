"""The T5 encoder: T5 v1.1 (FLAN too), umT5, and the blocks of our own byte-level encoder.

Each block is pre-normalised and has no biases; the residual stream stays in float32:

    x = x + Attention(RMSNorm(x))             logits = q . k + bias[bucket(key - query)], not divided by sqrt(head size)
    x = x + (gelu(x' Gate) * (x' Up)) Down    x' = RMSNorm(x)

Order is known only through the relative bias: nearby distances have a bucket each, farther ones share logarithmically
wider buckets, and each direction has its own half. T5 learns one bias table for all blocks, umT5 one per block.

Raffel et al. 2020, arXiv:1910.10683 (section 2.1); gated GELU: Shazeer 2020, arXiv:2002.05202; umT5: Chung et al. 2023,
arXiv:2304.09151.
"""

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from nova_jax.layers import linear, stack
from nova_jax.types import Mask, as_mask

Ids = Int[Array | np.ndarray, "b l"]

WAN_TEXT_LENGTH = 512


def relative_buckets(length: int, num_buckets: int, max_distance: int) -> Int[np.ndarray, "l l"]:
    """Bucket of every (query, key) pair: each direction has half, one per distance and then logarithmically wider."""
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]  # key - query
    half = num_buckets // 2
    exact = half // 2
    far = np.log(np.maximum(np.abs(distance), 1) / exact) / math.log(max_distance / exact) * (half - exact)
    # The tolerance keeps distances that lie exactly on a border (powers of two, as a rule) in the upper bucket.
    far = np.minimum(exact + np.floor(far + 1e-6).astype(np.int32), half - 1)
    return np.where(np.abs(distance) < exact, np.abs(distance), far).astype(np.int32) + half * (distance > 0)


class RelativeBias(nn.Module):
    """A learned attention bias per bucket of distance and per head."""

    num_heads: int
    num_buckets: int = 32
    max_distance: int = 128

    @nn.compact
    def __call__(self, length: int) -> Float[Array, "k l l"]:
        """The bias of every (query, key) pair of a text of `length` tokens."""
        init = nn.initializers.normal(0.02)
        table = self.param("embedding", init, (self.num_buckets, self.num_heads), jnp.float32)
        return jnp.moveaxis(table[relative_buckets(length, self.num_buckets, self.max_distance)], -1, 0)


class Attention(nn.Module):
    """Unscaled multi-head self-attention with an additive bias; `out` returns to the width of the input."""

    num_heads: int
    head_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], bias: Float[Array, "k l l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """Attends to the tokens that `mask` marks; every row needs at least one."""
        width, inner = x.shape[-1], self.num_heads * self.head_dim

        def project(name: str, stddev: float) -> Array:
            init = nn.initializers.normal(stddev)
            y = linear.Dense(inner, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)(x)
            return y.reshape(*x.shape[:2], self.num_heads, self.head_dim)

        query = project("query", (width * self.head_dim) ** -0.5)  # carries the missing 1 / sqrt(head size)
        key, value = project("key", width**-0.5), project("value", width**-0.5)
        y = jax.nn.dot_product_attention(query, key, value, bias[None], mask[:, None, None, :], scale=1.0)
        init = nn.initializers.normal(inner**-0.5)
        return linear.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=init, name="out")(
            y.reshape(*x.shape[:2], inner)
        )


class GatedMLP(nn.Module):
    """(gelu(x Gate) * (x Up)) Down, with the tanh form of GELU."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        """Acts on every token alone."""
        width = x.shape[-1]

        def dense(features: int, fan_in: int, name: str) -> linear.Dense:
            init = nn.initializers.normal(fan_in**-0.5)
            return linear.Dense(features, use_bias=False, dtype=self.dtype, kernel_init=init, name=name)

        gate = jax.nn.gelu(dense(self.hidden, width, "gate")(x), approximate=True)
        return dense(width, self.hidden, "down")(gate * dense(self.hidden, width, "up")(x))


class Context(NamedTuple):
    """What every block reads beside its tokens. `bias` None: each block owns its relative bias (umT5)."""

    bias: Float[Array, "k l l"] | None
    mask: Bool[Array, "b l"]


class Block(nn.Module):
    """One T5 encoder block."""

    num_heads: int
    head_dim: int
    mlp_width: int
    num_buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], context: Context) -> tuple[Float[Array, "b l d"], None]:
        """One layer, in the form `stack.scan_blocks` wants."""
        bias = context.bias
        if bias is None:
            bias = RelativeBias(self.num_heads, self.num_buckets, self.max_distance, name="relative_bias")(x.shape[1])
        attend = Attention(self.num_heads, self.head_dim, self.dtype, name="attention")
        h = nn.RMSNorm(epsilon=self.epsilon, dtype=jnp.float32, name="attention_norm")(x)
        x = x + attend(h, bias, context.mask).astype(x.dtype)
        h = nn.RMSNorm(epsilon=self.epsilon, dtype=jnp.float32, name="mlp_norm")(x)
        return x + GatedMLP(self.mlp_width, self.dtype, name="mlp")(h).astype(x.dtype), None


def make_blocks(width: int, depth: int, num_heads: int, mlp_ratio: float, dtype: Any) -> nn.Module:
    """The blocks of an encoder of our own, which share one relative bias; called inside the encoder's `__call__`."""
    return stack.scan_blocks(Block, depth)(
        num_heads=num_heads,
        head_dim=width // num_heads,
        mlp_width=round(mlp_ratio * width),
        dtype=dtype,
        name="blocks",
    )


class T5Encoder(nn.Module):
    """Token ids to states. `has_bias_per_block` False is T5 v1.1, True is umT5."""

    vocab_size: int
    width: int
    depth: int
    num_heads: int
    head_dim: int
    mlp_width: int
    num_buckets: int = 32
    max_distance: int = 128
    has_bias_per_block: bool = False
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Ids, mask: Mask | None = None) -> Float[Array, "b l d"]:
        """States of every position; `mask` marks the real tokens, by default all. Padded states are not zeroed."""
        mask = jnp.ones(ids.shape, bool) if mask is None else as_mask(mask)
        x = nn.Embed(self.vocab_size, self.width, embedding_init=nn.initializers.normal(1.0), name="embed")(
            jnp.asarray(ids)
        )
        bias = RelativeBias(self.num_heads, self.num_buckets, self.max_distance, name="relative_bias")
        blocks = stack.scan_blocks(Block, self.depth)(
            num_heads=self.num_heads,
            head_dim=self.head_dim,
            mlp_width=self.mlp_width,
            num_buckets=self.num_buckets,
            max_distance=self.max_distance,
            epsilon=self.epsilon,
            dtype=self.dtype,
            name="blocks",
        )
        x, _ = blocks(x, Context(None if self.has_bias_per_block else bias(ids.shape[1]), mask))
        return nn.RMSNorm(epsilon=self.epsilon, dtype=jnp.float32, name="final_norm")(x)

    def flops(self, length: int) -> int:
        """Forward FLOPs of one sample of `length` tokens: matrix products only, a multiply-add is two."""
        return self.depth * block_flops(length, self.width, self.num_heads * self.head_dim, self.mlp_width)


def block_flops(length: int, width: int, inner: int, mlp_width: int) -> int:
    """Forward FLOPs of one block: 4 projections, 2 attention products, 3 MLP products."""
    return 2 * length * (4 * width * inner + 2 * length * inner + 3 * width * mlp_width)


def t5_v1_1_xxl(dtype: Any = jnp.bfloat16) -> T5Encoder:
    """T5 v1.1 XXL, 4.76 B parameters: the text encoder of SD3, FLUX.1 and many others."""
    return _xxl(vocab_size=32128, has_bias_per_block=False, dtype=dtype)


def umt5_xxl(dtype: Any = jnp.bfloat16) -> T5Encoder:
    """umT5 XXL, 5.68 B parameters: the text encoder of Wan."""
    return _xxl(vocab_size=256384, has_bias_per_block=True, dtype=dtype)


def _xxl(**fields: Any) -> T5Encoder:
    return T5Encoder(width=4096, depth=24, num_heads=64, head_dim=64, mlp_width=10240, **fields)


def pad_for_wan(states: Float[Array, "b l d"], mask: Mask, length: int = WAN_TEXT_LENGTH) -> Float[Array, "b m d"]:
    """Text context as the Wan models expect it: the real tokens, then zeros up to `length`, used without a mask.

    The zero positions take part in cross-attention, so leaving them out, or masking them, changes the result.

    Raises:
        ValueError: the states are longer than `length`.
    """
    if states.shape[1] > length:
        raise ValueError(f"text has {states.shape[1]} tokens and the context {length}: shorten the prompt")
    states = jnp.where(as_mask(mask)[..., None], states, 0)
    return jnp.pad(states, ((0, 0), (0, length - states.shape[1]), (0, 0)))
