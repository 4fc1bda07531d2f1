"""Multi-head attention, softmax(q k^T / sqrt(head size)) v, with RMS-normalised queries and keys.

Five implementations of the same function:

    xla        plain products; forms the n x l scores. Every autodiff mode.
    tiled      the same, in blocks of queries whose scores are recomputed in the backward pass. Every autodiff mode.
    cudnn      flash attention of cuDNN: NVIDIA GPUs, bfloat16 or float16. Reverse mode only: `jax.jvp` fails.
    splash     flash attention in Pallas: TPUs (`attention_splash`). Reverse mode only.
    flash_jvp  cudnn (elsewhere and in float32: tiled) whose tangent is a constant to reverse mode: `jax.jvp`, and
               `jax.grad` of losses that hold `stop_gradient` of such a tangent. `jax.grad` alone fails.

Unless one is asked for, `choose` takes one by device, dtype and shape.

Which keys exist is a mask, or better their number where they come first: cuDNN reads that number, while a mask costs it
n x l further scores, so `attend` puts the keys of a mask in order for it.

Where the mesh cuts tokens, `attend_cut` runs them inside `parallel.context`, and keys that come round a ring go through
`attention_ring` (xla, tiled, flash_jvp) or are gathered over the ring (cudnn, splash).

Queries and keys are normalised before the product so that logits stay bounded (Dehghani et al. 2023, arXiv 2302.05442).
"""

from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Integer

from nova_jax.layers import attention_jvp, attention_ring, attention_splash, linear, norms, rope
from nova_jax.parallel import constrain as constraints
from nova_jax.parallel import context
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel.constrain import constrain
from nova_jax.types import as_mask

Implementation = Literal["xla", "tiled", "cudnn", "splash", "flash_jvp"]
QKNorm = Literal["per_head", "across_heads"]

FORWARD_MODE = frozenset({"xla", "tiled", "flash_jvp"})  # the implementations that `jax.jvp` can pass
FLASH = frozenset({"cudnn", "splash"})
SCORES_LIMIT = 2**20  # scores per sample and head above which plain attention goes from "xla" to "tiled"
QUERY_BLOCK = 128
OLD_GPUS = ("Tesla", "Quadro", "TITAN", "GTX", "RTX 20")  # before Ampere, which flash attention of cuDNN needs
KEY_MULTIPLE = 8  # of keys, for cuDNN

Heads = Float[Array, "b n k q"]
Keys = Float[Array, "b l k q"]
KeyMask = Bool[Array, "b l"] | Integer[Array, "b l"] | Integer[Array, " b"] | None


class Choice(NamedTuple):
    """An implementation, and why it is this one."""

    implementation: Implementation
    reason: str


def choose(device: Any, dtype: Any, n: int, l: int, head_dim: int) -> Choice:
    """The attention of n queries to l keys where none is asked for; reverse mode passes all that it may take.

    Args:
        device: what the program is compiled for: its `platform`, and its `device_kind` among GPUs.
        dtype: of queries, keys and values.
        n: queries.
        l: keys.
        head_dim: size of a head.
    """
    plain: Implementation = "xla" if n * l <= SCORES_LIMIT else "tiled"
    kind, dtype = device.device_kind, jnp.dtype(dtype)
    if device.platform not in ("gpu", "cuda", "tpu"):
        return Choice(plain, f"{device.platform} has no flash attention")
    if device.platform == "tpu":
        if dtype != jnp.bfloat16:
            return Choice(plain, f"flash attention on {kind} takes bfloat16, not {dtype}")
        if head_dim % 64:
            return Choice(plain, f"flash attention on {kind} takes heads of multiples of 64, not {head_dim}")
        if min(n, l) < attention_splash.LANES:
            return Choice(plain, f"a block of flash attention on {kind} is {attention_splash.LANES} queries and keys")
        return Choice("splash", f"{dtype} on {kind}")
    if any(old in kind for old in (*OLD_GPUS, "AMD", "Radeon")):
        return Choice(plain, f"flash attention of cuDNN needs an NVIDIA GPU from Ampere on, not {kind}")
    if dtype not in (jnp.bfloat16, jnp.float16):
        return Choice(plain, f"flash attention of cuDNN takes bfloat16 or float16, not {dtype}")
    if head_dim % 8 or head_dim > 256:
        return Choice(plain, f"flash attention of cuDNN takes heads of multiples of 8 up to 256, not {head_dim}")
    return Choice("cudnn", f"{dtype} on {kind}")


def attend(q: Heads, k: Keys, v: Keys, *, mask: KeyMask = None, implementation: Implementation | None = None) -> Heads:
    """Attention of n queries to l keys; softmax in float32, result in the dtype of q.

    Args:
        q: queries.
        k: keys.
        v: values.
        mask: (b, l), True, or 1, where a key may be attended to; or (b,), how many may be, if these come first. Each
            sample needs at least one.
        implementation: None takes what `choose` says for the mesh of `jax.set_mesh`, or for the default device.

    Raises:
        ValueError: an unknown implementation.
        TypeError: a derivative that the implementation does not have, or a mask of floats; see `types.as_mask`.
    """
    if implementation is None:
        implementation = _chosen(q, k)
    if implementation == "cudnn":
        return _attend_cudnn(q, k, v, mask)
    mask = as_rows(mask, k.shape[1])
    if implementation == "xla":
        return checkpoint_name(_attend_plain(q, k, v, mask), "attn_o")
    if implementation == "tiled":
        return checkpoint_name(_attend_tiled(q, k, v, mask), "attn_o")
    if implementation == "splash":
        return checkpoint_name(attention_splash.attend(q, k, v, mask), "attn_o")
    if implementation == "flash_jvp":
        return attention_jvp.with_target_tangent(_attend_flash, q, k, v, mask)
    raise ValueError(
        f"unknown attention implementation {implementation!r}: use xla, tiled, cudnn, splash, flash_jvp or None"
    )


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
    kernel = implementation or _chosen(q, k)
    # XLA cuts every implementation but Pallas kernels over samples and heads itself.
    if context.size() == 1 and not (kernel == "splash" and meshes.current_axes()):
        return attend(q, k, v, mask=mask, implementation=implementation)

    def on_device(q: Array, k: Array, v: Array, mask: Array | None, ring: context.Ring | None) -> Array:
        if ring is None:
            return attend(q, k, v, mask=mask, implementation=implementation)
        if kernel in FLASH:
            return attend(q, ring.gather(k), ring.gather(v), mask=mask, implementation=implementation)
        return attention_ring.attend(q, k, v, as_rows(mask, ring.length * k.shape[1]), ring)

    out = context.attend(on_device, q, k, v, mask, shares_keys=shares_keys, width=ulysses_degree)
    return checkpoint_name(out, "attn_o")  # once more after it has come back: that saves the way in the backward pass


def _chosen(q: Heads, k: Keys) -> Implementation:
    """What `choose` says of these arrays; the reason is noted for whoever starts the program."""
    choice = choose(meshes.current_device(), q.dtype, q.shape[1], k.shape[1], q.shape[-1])
    constraints.note(f"attention by {choice.implementation}: {choice.reason}")
    return choice.implementation


def reads_lengths(implementation: Implementation | None, dtype: Any, head_dim: int) -> bool:
    """Whether attention, as asked for on the device of this program, takes the number of keys rather than a mask."""
    if implementation in (None, "flash_jvp"):
        implementation = choose(meshes.current_device(), dtype, 1, 1, head_dim).implementation
    return implementation == "cudnn"


def as_rows(mask: KeyMask, l: int) -> Bool[Array, "b l"] | None:
    """A mask of l keys as booleans."""
    if mask is not None and mask.ndim == 1:
        return jnp.arange(l)[None] < mask[:, None]
    return None if mask is None else as_mask(mask)


def real_first(
    mask: Bool[Array, "b l"], *arrays: Float[Array, "b l *rest"]
) -> tuple[Integer[Array, " b"], *tuple[Array, ...]]:
    """How many are True in each row of the mask, and arrays whose rows are reordered so that these come first."""
    order = jnp.argsort(~mask, axis=1, stable=True)
    sorted_ = (jnp.take_along_axis(a, order.reshape(*order.shape, *[1] * (a.ndim - 2)), axis=1) for a in arrays)
    return mask.sum(axis=1, dtype=jnp.int32), *sorted_


def _attend_cudnn(q: Heads, k: Keys, v: Keys, mask: KeyMask) -> Heads:
    if mask is not None and mask.ndim == 2:
        mask, k, v = real_first(as_mask(mask), k, v)
    (b, l), fill = k.shape[:2], -k.shape[1] % KEY_MULTIPLE
    if fill:
        k, v = (jnp.pad(a, ((0, 0), (0, fill), (0, 0), (0, 0))) for a in (k, v))
        mask = jnp.full(b, l, jnp.int32) if mask is None else mask
    lengths = None if mask is None else mask.astype(jnp.int32)
    return jax.nn.dot_product_attention(q, k, v, key_value_seq_lengths=lengths, implementation="cudnn")


def _attend_flash(q: Heads, k: Keys, v: Keys, mask: KeyMask) -> Heads:
    has_kernel = _chosen(q, k) == "cudnn"
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
        """Keys in float32, before any rotation, and values."""
        return self._normalize(key, "key_norm"), self._split(value)

    def _split(self, x: Float[Array, "b n d"]) -> Heads:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def _normalize(self, x: Float[Array, "b n d"], name: str) -> Heads:
        """RMS norm of each head, or of all heads together (Wan), in float32."""
        groups = self.num_heads if self.qk_norm == "per_head" else 1
        return self._split(norms.RMSNorm(self.eps, groups, name=name)(x))


class KeysAndValues(_Projections):
    """The keys and values alone, of a context that many evaluations share: with parameters of `MultiHeadAttention`."""

    @nn.compact
    def __call__(self, y: Float[Array, "b l d"]) -> tuple[Keys, Keys]:
        """Keys and values for attention of the width of y."""
        key, value = self._as_keys(*self._project(y, y.shape[-1], "key", "value"))
        return key.astype(value.dtype), value


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
        q = constrain(self._normalize(query, "query_norm"), "batch", "tokens", "heads", "head_dim")
        k, v = (constrain(a, "batch", "tokens" if shares_keys else "text", "heads", "head_dim") for a in keys)
        if rotation is not None:
            q, k = rope.rotate(q, rotation), rope.rotate(k, rotation)
        q, k = (checkpoint_name(a.astype(self.dtype), "qk") for a in (q, k))
        out = attend_cut(
            q,
            k,
            v,
            shares_keys=shares_keys,
            mask=mask,
            implementation=self.implementation,
            ulysses_degree=self.ulysses_degree,
        )
        project = linear.Dense(d, kernel_init=self.out_init, dtype=self.dtype, saved="proj", name="out")
        return constrain(project(out.reshape(x.shape)), "batch", "tokens", "width")
