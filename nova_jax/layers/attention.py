"""Multi-head attention, softmax(q k^T / sqrt(head size)) v, with RMS-normalised queries and keys.

Four implementations of the same function:

    xla        plain products; forms the n x l scores. Every autodiff mode.
    tiled      the same, in blocks of queries whose scores are recomputed in the backward pass. Every autodiff mode.
    cudnn      flash attention of cuDNN: NVIDIA GPUs, bfloat16 or float16. Reverse mode only: `jax.jvp` fails.
    flash_jvp  cudnn (elsewhere and in float32: tiled) whose tangent is a constant to reverse mode: `jax.jvp`, and
               `jax.grad` of losses that hold `stop_gradient` of such a tangent. `jax.grad` alone fails.

Where the mesh cuts tokens, `attend_cut` runs them inside `parallel.context`, and keys that come round a ring go through
`attention_ring` (xla, tiled, flash_jvp) or are gathered over the ring (cudnn).

Queries and keys are normalised before the product so that logits stay bounded (Dehghani et al. 2023, arXiv 2302.05442).
"""

from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Integer

from nova_jax.layers import attention_jvp, attention_ring, linear, rope
from nova_jax.parallel import context
from nova_jax.parallel.constrain import constrain
from nova_jax.types import as_mask

Implementation = Literal["xla", "tiled", "cudnn", "flash_jvp"]
QKNorm = Literal["per_head", "across_heads"]

FORWARD_MODE = frozenset({None, "xla", "tiled", "flash_jvp"})  # the implementations that `jax.jvp` can pass
SCORES_LIMIT = 2**20  # scores per sample and head above which the default goes from "xla" to "tiled"
QUERY_BLOCK = 128

Heads = Float[Array, "b n k q"]
Keys = Float[Array, "b l k q"]
KeyMask = Bool[Array, "b l"] | Integer[Array, "b l"] | None


def attend(q: Heads, k: Keys, v: Keys, *, mask: KeyMask = None, implementation: Implementation | None = None) -> Heads:
    """Attention of n queries to l keys; softmax in float32, result in the dtype of q.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: True, or 1, where a key may be attended to; each sample needs at least one.
        implementation: None takes "xla", or "tiled" for long sequences, which work everywhere.

    Raises:
        ValueError: an unknown implementation.
        TypeError: a derivative that the implementation does not have, or a mask of floats; see `types.as_mask`.
    """
    mask = None if mask is None else as_mask(mask)
    if implementation is None:
        implementation = "xla" if q.shape[1] * k.shape[1] <= SCORES_LIMIT else "tiled"
    if implementation == "xla":
        return checkpoint_name(_attend_plain(q, k, v, mask), "attn_o")
    if implementation == "tiled":
        return checkpoint_name(_attend_tiled(q, k, v, mask), "attn_o")
    if implementation == "cudnn":
        return _attend_cudnn(q, k, v, mask)
    if implementation == "flash_jvp":
        return attention_jvp.with_target_tangent(_attend_flash, q, k, v, mask)
    raise ValueError(f"unknown attention implementation {implementation!r}: use xla, tiled, cudnn, flash_jvp or None")


def attend_cut(
    q: Heads,
    k: Keys,
    v: Keys,
    *,
    shares_keys: bool,
    mask: KeyMask = None,
    implementation: Implementation | None = None,
    ulysses_degree: int | None = None,
) -> Heads:
    """`attend` where a context axis of the mesh cuts the queries; see `parallel.context`.

    Args:
        q: queries.
        k: keys.
        v: values.
        shares_keys: whether keys and values are cut like the queries; otherwise every device has all of them.
        mask: as in `attend`.
        implementation: as in `attend`.
        ulysses_degree: devices that trade tokens for heads, the others form rings; None: as many as the heads allow.
    """
    if context.size() == 1:
        return attend(q, k, v, mask=mask, implementation=implementation)

    def on_device(q: Array, k: Array, v: Array, mask: Array | None, ring: context.Ring | None) -> Array:
        if ring is None:
            return attend(q, k, v, mask=mask, implementation=implementation)
        if implementation == "cudnn":
            return attend(q, ring.gather(k), ring.gather(v), mask=mask, implementation=implementation)
        return attention_ring.attend(q, k, v, mask, ring)

    mask = None if mask is None else as_mask(mask)
    out = context.attend(on_device, q, k, v, mask, shares_keys=shares_keys, width=ulysses_degree)
    return checkpoint_name(out, "attn_o")  # once more after it has come back: that saves the way in the backward pass


def _attend_cudnn(q: Heads, k: Keys, v: Keys, mask: KeyMask) -> Heads:
    # It wants even numbers of queries and keys, and spreads a mask over heads, but not over queries.
    (b, n), l = q.shape[:2], k.shape[1]
    q, k, v = (jnp.pad(a, ((0, 0), (0, a.shape[1] % 2), (0, 0), (0, 0))) for a in (q, k, v))
    if mask is not None or l % 2:
        mask = jnp.ones((b, l), bool) if mask is None else mask
        mask = jnp.pad(mask, ((0, 0), (0, l % 2)))[:, None, None]
        mask = jnp.broadcast_to(mask, (b, 1, q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(q, k, v, mask=mask, implementation="cudnn")[:, :n]


def _attend_flash(q: Heads, k: Keys, v: Keys, mask: KeyMask) -> Heads:
    has_kernel = jax.default_backend() == "gpu" and q.dtype in (jnp.bfloat16, jnp.float16)
    return attend(q, k, v, mask=mask, implementation="cudnn" if has_kernel else "tiled")


def _attend_plain(q: Heads, k: Keys, v: Keys, mask: KeyMask) -> Heads:
    q, k, v = (a.transpose(0, 2, 1, 3) for a in (q, k, v))  # heads outermost: twice as fast on CPU
    return _weigh_values(q, k, v, mask).transpose(0, 2, 1, 3)


def _attend_tiled(q: Heads, k: Keys, v: Keys, mask: KeyMask) -> Heads:
    b, n, heads, head_dim = q.shape
    blocks = -(-n // QUERY_BLOCK)
    padded = jnp.pad(q, ((0, 0), (0, blocks * QUERY_BLOCK - n), (0, 0), (0, 0)))
    # A block holds every blocks-th query, so that each shard of tokens has its part in every turn of the loop.
    rows = padded.reshape(b, QUERY_BLOCK, blocks, heads, head_dim).transpose(2, 0, 3, 1, 4)
    k, v = (a.transpose(0, 2, 1, 3) for a in (k, v))
    out = jax.lax.map(jax.checkpoint(lambda q: _weigh_values(q, k, v, mask)), rows)
    return out.transpose(1, 3, 0, 2, 4).reshape(b, -1, heads, head_dim)[:, :n]


def _weigh_values(
    q: Float[Array, "b k n q"], k: Float[Array, "b k l q"], v: Float[Array, "b k l q"], mask: KeyMask
) -> Float[Array, "b k n q"]:
    logits = jnp.einsum("bknq,bklq->bknl", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    if mask is not None:
        logits = jnp.where(mask[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
    # The sum divides the output, which is smaller than the scores; the maximum cancels, so it has no gradient.
    weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(axis=-1, keepdims=True)))
    out = jnp.einsum("bknl,bklq->bknq", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (out / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)


class _Projections(nn.Module):
    """What `KeysAndValues` and `MultiHeadAttention` share; its methods are called inside compact ones."""

    num_heads: int
    qk_norm: QKNorm = "per_head"
    eps: float = 1e-6
    dtype: Any = jnp.float32

    def _project(self, x: Float[Array, "b n e"], width: int, *names: str) -> list[Float[Array, "b n d"]]:
        layers = [linear.Dense(width, dtype=self.dtype, name=name) for name in names]
        return [checkpoint_name(part, "qkv") for part in linear.project(x, layers)]

    def _as_keys(self, key: Float[Array, "b l d"], value: Float[Array, "b l d"]) -> tuple[Keys, Keys]:
        """Keys and values as attention reads them, before any rotation."""
        return self._split(self._normalize(key, "key_norm")), self._split(value)

    def _split(self, x: Float[Array, "b n d"]) -> Heads:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def _normalize(self, x: Float[Array, "b n d"], name: str) -> Float[Array, "b n d"]:
        """RMS norm of each head, or of all heads together (Wan), in float32."""
        grouped = self._split(x) if self.qk_norm == "per_head" else x
        norm = nn.RMSNorm(epsilon=self.eps, dtype=jnp.float32, name=name)
        return norm(grouped).astype(x.dtype).reshape(x.shape)


class KeysAndValues(_Projections):
    """The keys and values alone, of a context that many evaluations share: with parameters of `MultiHeadAttention`."""

    @nn.compact
    def __call__(self, y: Float[Array, "b l d"]) -> tuple[Keys, Keys]:
        """Keys and values for attention of the width of y."""
        return self._as_keys(*self._project(y, y.shape[-1], "key", "value"))


class MultiHeadAttention(_Projections):
    """Self-attention with `x = y`, or cross-attention from tokens x to a context y."""

    out_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    implementation: Implementation | None = None
    ulysses_degree: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        y: Float[Array, "b l e"] | None,
        *,
        rotation: rope.Rotation | None = None,
        mask: KeyMask = None,
        keys: tuple[Keys, Keys] | None = None,
    ) -> Float[Array, "b n d"]:
        """Attends from x to y; `rotation` turns queries and keys (self-attention), `mask` marks the keys that exist.

        `keys` are the keys and values of y where `KeysAndValues` has made them before; y may then be None.
        """
        d = x.shape[-1]
        if y is x:
            query, *rest = self._project(x, d, "query", "key", "value")
            keys = self._as_keys(*rest)
        else:
            (query,) = self._project(x, d, "query")
            if keys is None:
                assert y is not None
                keys = self._as_keys(*self._project(y, d, "key", "value"))
        shares_keys = y is x
        # q[B, N_context, K_tensor, Q]; keys and values lie alike in self-attention, and leave after the rotation, once.
        q = constrain(self._split(self._normalize(query, "query_norm")), "batch", "tokens", "heads", "head_dim")
        k, v = (constrain(a, "batch", "tokens" if shares_keys else "text", "heads", "head_dim") for a in keys)
        if rotation is not None:
            q, k = rope.rotate(q, rotation), rope.rotate(k, rotation)
        out = attend_cut(
            q,
            k,
            v,
            shares_keys=shares_keys,
            mask=mask,
            implementation=self.implementation,
            ulysses_degree=self.ulysses_degree,
        )
        proj = linear.Dense(d, kernel_init=self.out_init, dtype=self.dtype, name="out")(out.reshape(x.shape))
        return checkpoint_name(constrain(proj, "batch", "tokens", "width"), "proj")
