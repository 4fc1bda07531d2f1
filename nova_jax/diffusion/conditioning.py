"""Conditions left out: in training at random, so that guidance works; in sampling on purpose, which is guidance.

"Nothing was said" has one form per part of a `Conditioning`, and the network learns it:

    text        states or ids all zero, mask True at position 0 only
    pooled      zeros
    aligned     zeros
    frames      zeros at frame time 1 (noise: no information); roles stay
    palette     mask all False

`r`, `guidance_scale` and `task` are inputs of the network, not conditions: they always stay. Each part is dropped
independently (Ho & Salimans 2022, arXiv 2207.12598; several conditions: Brooks et al. 2022, 2211.09800, section 3.2.1),
so one model can be guided by the text alone, by the picture alone, or by both.
"""

import dataclasses
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from nova_jax.types import Conditioning, as_mask

PARTS = ("text", "pooled", "aligned", "frames", "palette")
FIELDS = {
    "text": ("text", "text_ids", "text_mask"),
    "pooled": ("pooled",),
    "aligned": ("aligned",),
    "frames": ("frames", "frame_times"),
    "palette": ("palette", "palette_mask"),
}

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropRates:
    """The share of training samples from which each part is left out."""

    text: float = 0.1
    pooled: float = 0.1
    aligned: float = 0.0
    frames: float = 0.0
    palette: float = 0.0

    def __post_init__(self) -> None:
        for part in PARTS:
            if not 0 <= getattr(self, part) <= 1:
                raise ValueError(f"the drop rate of {part} must lie in [0, 1], got {getattr(self, part)}")


def null(cond: Conditioning, *, parts: Sequence[str] = PARTS) -> Conditioning:
    """The condition with these parts left out, in the form the network was trained on.

    Guidance by text alone keeps what is pixel on pixel: `functools.partial(null, parts=("text", "pooled"))`. An encoder
    that is trained inside the network has its own answer to null ids: take the null of the ids, then encode it.
    """
    if not isinstance(cond, Conditioning):
        raise TypeError(f"only a Conditioning has a null form, got {type(cond).__name__}; pass your own null function")
    if unknown := set(parts) - set(PARTS):
        raise ValueError(f"a Conditioning has no part {sorted(unknown)}; its parts are {', '.join(PARTS)}")
    cond = explicit(cond)
    nothing = jax.tree.map(jnp.zeros_like, cond)
    if cond.text_mask is not None:
        nothing = nothing._replace(text_mask=jnp.zeros_like(cond.text_mask).at[:, 0].set(True))
    if cond.frame_times is not None:
        nothing = nothing._replace(frame_times=jnp.ones_like(cond.frame_times))
    return cond._replace(**{field: getattr(nothing, field) for part in parts for field in FIELDS[part]})


def drop(cond: Conditioning, key: PRNGKeyArray, rates: DropRates) -> Conditioning:
    """Leaves out each part of each sample at random, independently of the other parts and samples."""
    keys = dict(zip(PARTS, jax.random.split(key, len(PARTS)), strict=True))
    cond = explicit(cond)
    for part in PARTS:
        rate = getattr(rates, part)
        arrays = [getattr(cond, field) for field in FIELDS[part] if getattr(cond, field) is not None]
        if rate == 0 or not arrays:
            continue
        is_dropped = jax.random.bernoulli(keys[part], rate, (arrays[0].shape[0],))
        cond = _choose(is_dropped, null(cond, parts=(part,)), cond)
    return cond


def explicit(cond: Conditioning) -> Conditioning:
    """Writes out what a missing part means: text states, ids but 0 and colours are real; extra frames are clean.

    Masks become booleans; see `types.as_mask` for what they may be, and for what it raises.
    """
    for field in ("text_mask", "palette_mask"):
        mask = getattr(cond, field)
        if mask is not None and mask.dtype != bool:
            cond = cond._replace(**{field: as_mask(mask)})
    if cond.text_mask is None and cond.text is not None:
        cond = cond._replace(text_mask=jnp.ones(cond.text.shape[:2], bool))
    if cond.text_mask is None and cond.text_ids is not None:
        is_real = (cond.text_ids != 0).reshape(*cond.text_ids.shape[:2], -1).any(axis=-1)
        cond = cond._replace(text_mask=is_real)
    if cond.frame_times is None and cond.frames is not None:
        cond = cond._replace(frame_times=jnp.zeros(cond.frames.shape[:2]))
    if cond.palette_mask is None and cond.palette is not None:
        cond = cond._replace(palette_mask=jnp.ones(cond.palette.shape[:2], bool))
    return cond


def interleave(*trees: Tree) -> Tree:
    """Stacks batches of arrays (or trees of them) along the batch axis: rows a0 b0 a1 b1 ...

    Unlike concatenation this moves no row to another device when the batch axis is sharded. `split` undoes it.

    Raises:
        ValueError: the trees do not hold the same parts.
    """
    trees = tuple(_map_conditions(explicit, tree) for tree in trees)
    kinds = [jax.tree.structure(tree) for tree in trees]
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(f"conditions of one batch must hold the same parts, got {' and '.join(map(str, kinds))}")
    return jax.tree.map(lambda *rows: jnp.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:]), *trees)


def split(tree: Tree, count: int) -> tuple[Tree, ...]:
    """The `count` batches that `interleave` stacked."""
    stacked = jax.tree.map(lambda rows: rows.reshape(-1, count, *rows.shape[1:]), tree)
    return tuple(jax.tree.map(operator.itemgetter((slice(None), i)), stacked) for i in range(count))


def _choose(is_first: Bool[Array, " b"], first: Conditioning, second: Conditioning) -> Conditioning:
    def pick(a: Array, b: Array) -> Any:
        return jnp.where(is_first.reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, first, second)


def _map_conditions(function: Callable[[Conditioning], Conditioning], tree: Tree) -> Tree:
    def is_condition(node: Any) -> bool:
        return isinstance(node, Conditioning)

    return jax.tree.map(lambda node: function(node) if is_condition(node) else node, tree, is_leaf=is_condition)
