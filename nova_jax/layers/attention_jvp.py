"""Softmax attention under `jax.jvp` whose primal is a flash kernel: the tangent is a target.

Losses such as MeanFlow (Geng et al. 2025, arXiv:2505.13447) take `u, du = jax.jvp(network, ..)` and treat du as a
constant. Their gradient needs reverse mode through the primal alone, which flash kernels have, and the value of the
tangent, which this module computes. With p_ij = exp(s_ij - m_i) and the sums over keys j

    s = q k^T / sqrt(head size)        ds = (dq k^T + q dk^T) / sqrt(head size)
    l = sum p       r = sum p ds       o = sum p v       o' = sum (p ds) v + p dv
    O = o / l       dO = o' / l - (r / l) O

taken in one pass over blocks of keys: m is the running maximum, and the four sums are rescaled when it grows (online
softmax; Milakov and Gimelshein 2018, arXiv:1805.02867; Rabe and Staats 2021, arXiv:2112.05682). Memory is n x block,
never n x l. Lu and Song 2024, arXiv:2410.11081 (sCM), train with a fused kernel of this kind.

Reverse mode through the tangent raises a TypeError. That is what `jax.grad` without `jax.jvp` asks for, since autodiff
transposes the tangent of a `custom_jvp`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nova_jax.parallel.constrain import constrain

KEY_BLOCK = 128

Queries = Float[Array, "b n k q"]
Keys = Float[Array, "b l k q"]
KeyMask = Bool[Array, "b l"] | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def with_target_tangent(primal: Callable[..., Queries], q: Queries, k: Keys, v: Keys, mask: KeyMask) -> Queries:
    """`primal(q, k, v, mask)`, softmax attention by any kernel, with the tangent of this module.

    Raises:
        TypeError: on reverse mode through the tangent: `jax.grad` outside `jax.jvp`, or of a loss that does not apply
            `stop_gradient` to what `jax.jvp` returned.
        NotImplementedError: on `jax.vmap` of the derivative.
    """
    return primal(q, k, v, mask)


@with_target_tangent.defjvp
def _jvp(
    primal: Callable[..., Queries], primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[Queries, Queries]:
    q, k, v, mask = primals
    tangent = attention_tangent(q, k, v, *tangents[:3], mask)
    # The transpose of this identity is the first step of reverse mode through the tangent.
    return primal(q, k, v, mask), jax.custom_derivatives.linear_call(lambda _, x: x, _refuse, (), tangent)


def _refuse(*_: Any) -> NoReturn:
    raise TypeError(
        'attention "flash_jvp" has no gradient of its tangent: use it inside jax.jvp only, with stop_gradient on the '
        'tangent that jax.jvp returns; for jax.grad alone take "xla", "tiled" or "cudnn", for gradients of tangents '
        '"xla" or "tiled"'
    )


class _Sums(NamedTuple):
    """What the pass over keys accumulates for each head and query, in float32."""

    m: Float[Array, "b k n"]
    l: Float[Array, "b k n"]
    r: Float[Array, "b k n"]
    o: Float[Array, "b k n q"]
    do: Float[Array, "b k n q"]


class _Block(NamedTuple):
    """A block of keys; `mask` is also False where the last block is filled up."""

    k: Float[Array, "b k t q"]
    v: Float[Array, "b k t q"]
    dk: Float[Array, "b k t q"]
    dv: Float[Array, "b k t q"]
    mask: Bool[Array, "b 1 1 t"]


@jax.custom_vjp
def attention_tangent(q: Queries, k: Keys, v: Keys, dq: Queries, dk: Keys, dv: Keys, mask: KeyMask) -> Queries:
    """dO, the derivative of softmax attention along (dq, dk, dv), in the dtype of q; itself not differentiable.

    Products take their factors in the dtype of q, k and v; sums are in float32. `mask` is True where a key may be
    attended to; each sample needs at least one.
    """
    q, dq = (constrain(a.transpose(0, 2, 1, 3), "batch", "heads", "tokens", "head_dim") for a in (q, dq))
    zeros = jnp.zeros_like(q, jnp.float32)  # not `jnp.zeros`: like q, these vary over the axes of a `shard_map`
    start = _Sums(zeros[..., 0] - jnp.inf, zeros[..., 0], zeros[..., 0], zeros, zeros)
    sums, _ = jax.lax.scan(functools.partial(_add_block, q, dq), start, _split_keys(k, v, dk, dv, mask))
    out = (sums.do - (sums.r / sums.l)[..., None] * sums.o) / sums.l[..., None]
    return out.transpose(0, 2, 1, 3).astype(q.dtype)


# Differentiated and then dropped, as `stop_gradient` does, it costs nothing: no residuals, and no call of `_refuse`.
attention_tangent.defvjp(lambda *args: (attention_tangent(*args), None), _refuse)


def _split_keys(k: Keys, v: Keys, dk: Keys, dv: Keys, mask: KeyMask) -> _Block:
    """All blocks of keys, stacked along a leading axis."""
    b, n, heads, head_dim = k.shape
    size = min(KEY_BLOCK, n)
    blocks = -(-n // size)

    def split(a: Keys) -> Float[Array, "s b k t q"]:
        padded = jnp.pad(a, ((0, 0), (0, blocks * size - n), (0, 0), (0, 0)))
        stacked = padded.reshape(b, blocks, size, heads, head_dim).transpose(1, 0, 3, 2, 4)
        return constrain(stacked, None, "batch", "heads", None, "head_dim")

    mask = jnp.ones((b, n), bool) if mask is None else mask
    mask = jnp.pad(mask, ((0, 0), (0, blocks * size - n))).reshape(b, blocks, 1, 1, size)
    return _Block(split(k), split(v), split(dk), split(dv), mask.transpose(1, 0, 2, 3, 4))


def _add_block(
    q: Float[Array, "b k n q"], dq: Float[Array, "b k n q"], sums: _Sums, block: _Block
) -> tuple[_Sums, None]:
    dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scale = q.shape[-1] ** -0.5
    s = jnp.where(block.mask, dot("bknq,bktq->bknt", q, block.k) * scale, jnp.finfo(jnp.float32).min)
    ds = (dot("bknq,bktq->bknt", dq, block.k) + dot("bknq,bktq->bknt", q, block.dk)) * scale
    m = jnp.maximum(sums.m, s.max(axis=-1))
    p, shrink = jnp.exp(s - m[..., None]), jnp.exp(sums.m - m)
    p_ds = p * ds
    o = dot("bknt,bktq->bknq", p.astype(q.dtype), block.v)
    do = dot("bknt,bktq->bknq", p_ds.astype(q.dtype), block.v) + dot("bknt,bktq->bknq", p.astype(q.dtype), block.dv)
    return _Sums(
        m,
        shrink * sums.l + p.sum(axis=-1),
        shrink * sums.r + p_ds.sum(axis=-1),
        shrink[..., None] * sums.o + o,
        shrink[..., None] * sums.do + do,
    ), None
