"""Softmax attention whose keys and values come round a ring of devices, in plain JAX: every autodiff mode.

With p_ij = exp(s_ij - lse_i) and the sums over keys j of all groups

    s = q k^T / sqrt(head size)        lse = log sum exp(s)        O = sum p v
    ds = (dq k^T + q dk^T) / sqrt(head size)
    dlse = sum p ds                    dO = sum (p ds) v + p dv - dlse O

The value is an online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) over the groups and over blocks of keys.
Its derivative is the rule above. It is a plain sum over keys, linear in (dq, dk, dv), so that reverse mode transposes
it: keys come round once more, and gradients of keys and values go home the way their keys came. Between the passes a
device keeps its own q, k, v, O and lse, and nothing of other devices.

Liu et al. 2023, arXiv:2310.01889 (ring attention).
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from nova_jax.parallel.context import Ring

KEY_BLOCK = 512

Heads = Float[Array, "b n k q"]
Rows = Float[Array, "b k n"]
Mask = Bool[Array, "b l"] | None  # of the keys of all groups

_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class _Sums(NamedTuple):
    """The running maximum of the scores, and the sums of weights and of weighted values."""

    m: Rows
    l: Rows
    o: Float[Array, "b k n q"]


def attend(q: Heads, k: Heads, v: Heads, mask: Mask, ring: Ring) -> Heads:
    """Attention of a device's queries to the keys of the whole ring; inside `jax.shard_map` only.

    Args:
        q: queries of this device.
        k: keys of this device's group.
        v: values of this device's group.
        mask: of all keys, True where one may be attended to; each sample needs at least one.
        ring: who hands keys to whom.
    """
    heads_first = (a.transpose(0, 2, 1, 3) for a in (q, k, v))
    return _attend(*heads_first, mask, ring)[0].transpose(0, 2, 1, 3)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _attend(q: Array, k: Array, v: Array, mask: Mask, ring: Ring) -> tuple[Float[Array, "b k n q"], Rows]:
    """O in the dtype of q, and lse in float32."""
    zeros = jnp.zeros_like(q, jnp.float32)
    sums = _Sums(zeros[..., 0] - jnp.inf, zeros[..., 0], zeros)
    for step in range(ring.length):
        k, v = (k, v) if step == 0 else ring.shift((k, v), 1)
        sums, _ = jax.lax.scan(functools.partial(_add, q), sums, _blocks(k, v, mask=mask, ring=ring, step=step))
    return (sums.o / sums.l[..., None]).astype(q.dtype), sums.m + jnp.log(sums.l)


def _add(q: Array, sums: _Sums, block: tuple[Any, ...]) -> tuple[_Sums, None]:
    k, v, mask = block
    s = _scores(q, k, mask)
    m = jnp.maximum(sums.m, s.max(axis=-1))
    p, shrink = jnp.exp(s - m[..., None]), jnp.exp(sums.m - m)
    o = _dot("bknt,bktq->bknq", p.astype(v.dtype), v)
    return _Sums(m, shrink * sums.l + p.sum(axis=-1), shrink[..., None] * sums.o + o), None


@_attend.defjvp
def _derivative(ring: Ring, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    q, k, v, mask = primals
    out, lse = (checkpoint_name(a, "attn_o") for a in _attend(q, k, v, mask, ring))
    do, dlse = jnp.zeros_like(q, jnp.float32), jnp.zeros_like(lse)
    for step in range(ring.length):
        # Keys travel inside: what comes round is fetched again for reverse mode, not kept.
        turn = jax.checkpoint(functools.partial(_turn, ring=ring, step=step))
        more = turn(primals, lse, tangents[:3])
        do, dlse = do + more[0], dlse + more[1]
    return (out, lse), ((do - dlse[..., None] * out).astype(q.dtype), dlse)


def _turn(
    primals: tuple[Any, ...], lse: Rows, tangents: tuple[Any, ...], *, ring: Ring, step: int
) -> tuple[Array, Array]:
    """What the keys of one group add to sum (p ds) v + p dv, and to sum p ds."""
    (q, k, v, mask), (dq, dk, dv) = primals, tangents
    k, v, dk, dv = ring.shift((k, v, dk, dv), step) if step else (k, v, dk, dv)

    @jax.checkpoint
    def add(sums: tuple[Array, Array], block: tuple[Any, ...]) -> tuple[tuple[Array, Array], None]:
        k, v, dk, dv, mask = block
        p = jnp.exp(_scores(q, k, mask) - lse[..., None])
        p_ds = p * (_dot("bknq,bktq->bknt", dq, k) + _dot("bknq,bktq->bknt", q, dk)) * q.shape[-1] ** -0.5
        do = _dot("bknt,bktq->bknq", p_ds.astype(v.dtype), v) + _dot("bknt,bktq->bknq", p.astype(v.dtype), dv)
        return (sums[0] + do, sums[1] + p_ds.sum(axis=-1)), None

    start = jnp.zeros_like(q, jnp.float32), jnp.zeros_like(lse)
    return jax.lax.scan(add, start, _blocks(k, v, dk, dv, mask=mask, ring=ring, step=step))[0]


def _scores(q: Array, k: Array, mask: Bool[Array, "b t"] | None) -> Float[Array, "b k n t"]:
    s = _dot("bknq,bktq->bknt", q, k) * q.shape[-1] ** -0.5
    return s if mask is None else jnp.where(mask[:, None, None], s, jnp.finfo(jnp.float32).min)


def _blocks(*arrays: Array, mask: Mask, ring: Ring, step: int) -> tuple[Array | None, ...]:
    """Keys (and values, and their tangents) of a group in blocks along a leading axis, and the mask of each."""
    b, heads, n, head_dim = arrays[0].shape
    size = min(KEY_BLOCK, n)
    fill = -n % size
    if mask is not None:
        mask = ring.turned(mask, step)
    elif fill:
        mask = jnp.ones((b, n), bool)
    split = [
        jnp.pad(a, ((0, 0), (0, 0), (0, fill), (0, 0))).reshape(b, heads, -1, size, head_dim).transpose(2, 0, 1, 3, 4)
        for a in arrays
    ]
    return *split, None if mask is None else jnp.pad(mask, ((0, 0), (0, fill))).reshape(b, -1, size).transpose(1, 0, 2)
