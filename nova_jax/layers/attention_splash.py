"""Flash attention for TPUs: JAX's splash kernel, in Pallas, for queries and keys of any number.

The kernel works on whole blocks. Queries and keys are filled up to them, and keys that do not exist form a segment that
no query belongs to. It has a reverse mode only, and XLA cannot cut it: on a mesh it runs inside `jax.shard_map`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Bool, Float

LANES = 128  # a block is a multiple of them
BLOCK = 512  # of queries and of keys, where there are so many

Heads = Float[Array, "b n k q"]
Keys = Float[Array, "b l k q"]


def attend(q: Heads, k: Keys, v: Keys, mask: Bool[Array, "b l"] | None, *, is_interpreted: bool = False) -> Heads:
    """softmax(q k^T / sqrt(head size)) v over the keys where the mask is True; None: over all.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: each sample needs at least one True.
        is_interpreted: run the kernel's steps one by one, on any device: for tests.
    """
    (n, heads), l = q.shape[1:3], k.shape[1]
    block_q, block_k = (min(BLOCK, size + -size % LANES) for size in (n, l))
    q, k, v = (_fill(a, block) for a, block in ((q, block_q), (k, block_k), (v, block_k)))
    everywhere = masks.MultiHeadMask([masks.FullMask((q.shape[1], k.shape[1]))] * heads)
    run: Any = kernel.make_splash_mha_single_device(
        everywhere, block_sizes=_blocks(block_q, block_k), interpret=is_interpreted
    )
    segments = None
    if mask is not None or k.shape[1] > l:
        mask = jnp.ones((q.shape[0], l), bool) if mask is None else mask
        missing = jnp.pad(~mask, ((0, 0), (0, k.shape[1] - l)), constant_values=True)
        segments = kernel.SegmentIds(jnp.zeros(q.shape[:2], jnp.int32), missing.astype(jnp.int32))
    q = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    out: Array = jax.vmap(run, in_axes=(0, 0, 0, None if segments is None else 0))(q, k, v, segments)
    return out.transpose(0, 2, 1, 3)[:, :n]


def _fill(x: Heads, block: int) -> Float[Array, "b m k q"]:
    """Zeros at the end, up to a whole number of blocks."""
    return jnp.pad(x, ((0, 0), (0, -x.shape[1] % block), (0, 0), (0, 0)))


def _blocks(q: int, k: int) -> kernel.BlockSizes:
    size = functools.partial(kernel.BlockSizes, block_q=q, block_kv=k, block_kv_compute=k)
    return size(block_q_dkv=q, block_kv_dkv=k, block_kv_dkv_compute=k, block_q_dq=q, block_kv_dq=k)
