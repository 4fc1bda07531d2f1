"""Conditions left out: in training at random, so that guidance works; in sampling on purpose, which is guidance.

A condition that is left out has one form, stated by its entry in `nova_jax.conditions`, and the network learns it. Each
is dropped independently (Ho & Salimans 2022, arXiv 2207.12598; several conditions: Brooks et al. 2022, 2211.09800,
section 3.2.1), so one model can be guided by the text alone, by the image alone, or by both. Inputs without a drop
rate (`r`, `guidance_scale`, `task`) always stay.
"""

import dataclasses
import operator
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from nova_jax import conditions
from nova_jax.types import Conditioning, as_mask

Tree = TypeVar("Tree")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DropRates:
    """The share of training samples from which each condition is left out.

    `extra` holds (name, rate) of conditions that you registered, where their rate is not the one they registered.
    """

    text: float = conditions.dropped()["text"]
    pooled: float = conditions.dropped()["pooled"]
    aligned: float = conditions.dropped()["aligned"]
    frames: float = conditions.dropped()["frames"]
    palette: float = conditions.dropped()["palette"]
    extra: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for name, rate in self.by_condition().items():
            if not 0 <= rate <= 1:
                raise ValueError(f"the drop rate of {name} must lie in [0, 1], got {rate}")

    def by_condition(self) -> dict[str, float]:
        """The rate of every condition that may be left out.

        Raises:
            ValueError: `extra` names a condition that there is not, or one that is never left out.
        """
        rates = conditions.dropped()
        if unknown := set(dict(self.extra)) - set(rates):
            raise ValueError(f"no condition {sorted(unknown)} can be dropped; these can: {', '.join(rates)}")
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name in rates}
        return rates | own | dict(self.extra)


def null(cond: Conditioning, *, parts: Sequence[str] | None = None) -> Conditioning:
    """The condition with these parts left out, in the form the network was trained on; None: all that may be.

    Guidance by text alone keeps what is pixel on pixel: `functools.partial(null, parts=("text", "pooled"))`. An encoder
    that is trained inside the network has its own answer to null ids: take the null of the ids, then encode it.
    """
    if not isinstance(cond, Conditioning):
        raise TypeError(f"only a Conditioning has a null form, got {type(cond).__name__}; pass your own null function")
    known = tuple(conditions.dropped())
    if unknown := set(parts or ()) - set(known):
        raise ValueError(f"a Conditioning has no part {sorted(unknown)}; its parts are {', '.join(known)}")
    cond = explicit(cond)
    for name in known if parts is None else parts:
        cond = conditions.find(name).left_out(cond)
    return cond


def drop(cond: Conditioning, key: PRNGKeyArray, rates: DropRates) -> Conditioning:
    """Leaves out each part of each sample at random, independently of the other parts and samples."""
    built_in = [c.name for c in conditions.BUILT_IN if c.drop_rate is not None]
    keys = dict(zip(built_in, jax.random.split(key, len(built_in)), strict=True))
    cond = explicit(cond)
    for name, rate in rates.by_condition().items():
        value = conditions.find(name).value(cond)
        if rate == 0 or value is None:
            continue
        # The key of a registered condition depends on its name alone, not on what else is registered.
        own = keys[name] if name in keys else jax.random.fold_in(key, zlib.crc32(name.encode()))
        is_dropped = jax.random.bernoulli(own, rate, (value.shape[0],))
        cond = _choose(is_dropped, null(cond, parts=(name,)), cond)
    return cond


def explicit(cond: Conditioning) -> Conditioning:
    """Writes out what a missing detail means: text states, ids but 0 and colours are real; extra frames are clean.

    Masks become booleans; see `types.as_mask` for what they may be, and for what it raises.
    """
    found = {}
    for condition in conditions.CONDITIONS.values():
        for detail in condition.details:
            array = cond.get(detail)
            if array is not None and detail.endswith("_mask") and array.dtype != bool:
                found[detail] = as_mask(array)
            if array is None and detail in condition.implied and condition.value(cond) is not None:
                found[detail] = condition.implied[detail](cond)
    return cond.put(**found)


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
