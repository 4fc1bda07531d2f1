"""Optimizers and their learning rates.

AdamW (Loshchilov and Hutter 2017, 1711.05101):

    p <- p - rate(step) (m / (sqrt(v) + eps) + weight_decay p)

Muon, for hidden matrices: the nearest semi-orthogonal matrix of their momentum, see `training.muon`. Everything else is
left to AdamW.

Blocks are stacked along a leading depth axis: a kernel [L, in, out] is L matrices, and a bias [L, d] is not a matrix.
So the name of a parameter, not its rank, decides what it is.
"""

import abc
import dataclasses
import functools
import re
from collections.abc import Hashable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from nova_jax.parallel import rules
from nova_jax.training import muon

DECAYED = r"(^|/)(kernel|embedding)$"  # never biases, norm scales or modulation tables
MATRICES = {  # what Muon takes, by name
    "blocks": r"(^|/)blocks/.*kernel$",
    "hidden": r"(^|/)(blocks/.*|\w*_embed/(in|out)/|time_modulation/)kernel$",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer(abc.ABC):
    """Learning rate, clipping and decay, common to all; `make()` gives the optax transformation.

    The rate climbs linearly over `warmup` steps to `peak`, then follows `schedule` down to zero at `total_steps`.

    Attributes:
        peak: the highest learning rate.
        warmup: steps of the climb; of a schedule that falls, at most half of `total_steps`.
        schedule: what follows the climb.
        total_steps: where the rate is zero; None: at the last step of the run (`ending_at`).
        weight_decay: of kernels and embeddings.
        clip_norm: largest global norm of the gradients.
    """

    peak: float = 1e-4
    warmup: int = 1000
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    total_steps: int | None = None
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.peak < float("inf") or self.warmup < 0:
            raise ValueError(f"{self}: peak must be positive and finite, and warmup at least 0")
        if self.schedule not in ("constant", "cosine", "linear"):
            raise ValueError(f"schedule {self.schedule!r} is unknown: use constant, cosine or linear")
        if self.total_steps is not None and self.total_steps < 1:
            raise ValueError(f"total_steps is {self.total_steps}; give 1 or more, or None for the steps of the run")

    def ending_at(self, steps: int) -> "Optimizer":
        """The same optimizer for a run of `steps`: a schedule without an end of its own ends there.

        Raises:
            ValueError: the schedule's own end comes before that of the run.
        """
        if self.schedule == "constant" or self.total_steps == steps:
            return self
        if self.total_steps is None:
            return dataclasses.replace(self, total_steps=steps)
        if self.total_steps < steps:
            raise ValueError(
                f"steps={steps}, but the {self.schedule} schedule ends at optimizer.total_steps={self.total_steps}, "
                "and the learning rate would be 0 from there on: leave optimizer.total_steps out (or none), and the "
                f"schedule ends with the run; or give steps={self.total_steps}"
            )
        return self

    def learning_rate(self, step: Any) -> Float[Array, ""]:
        """The rate of update number `step`, counted from 0; the first one is peak / warmup.

        Raises:
            ValueError: a schedule that falls has no end.
        """
        step = jnp.asarray(step, jnp.float32)
        if self.schedule == "constant":
            return self.peak * jnp.minimum(1.0, (step + 1) / max(self.warmup, 1))
        if self.total_steps is None:
            raise ValueError(f"the schedule {self.schedule!r} has no end: give total_steps, or use ending_at(steps)")
        warmup = min(self.warmup, self.total_steps // 2)
        warm = jnp.minimum(1.0, (step + 1) / max(warmup, 1))
        progress = jnp.clip((step + 1 - warmup) / (self.total_steps - warmup), 0.0, 1.0)
        decay = 1 - progress if self.schedule == "linear" else 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return self.peak * warm * decay

    @abc.abstractmethod
    def make(self) -> optax.GradientTransformation:
        """The transformation of gradients into updates, clipping included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdamW(Optimizer):
    """Adam with decoupled weight decay on kernels and embeddings."""

    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def make(self) -> optax.GradientTransformation:
        """Clips the global norm, then AdamW."""
        return _clipped(self.clip_norm, _adamw(self, self.b1, self.b2, self.eps))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Muon(Optimizer):
    """Muon for hidden matrices, AdamW for embeddings, ends, vectors and tables.

    Attributes:
        matrices: of "blocks" alone, or all "hidden" ones: those of embedders and of the shared modulation too.
        adam_scale: AdamW's learning rate over Muon's.
        newton_schulz_dtype: of the products of the iteration; auto: bfloat16, on a CPU float32.
    """

    matrices: Literal["blocks", "hidden"] = "blocks"
    adam_scale: float = 1.0
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    newton_schulz_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.matrices in MATRICES and self.newton_schulz_dtype in ("auto", "float32", "bfloat16")
        if not known or not self.adam_scale > 0:
            raise ValueError(
                f"{self}: matrices is one of {', '.join(MATRICES)}, and adam_scale above 0; newton_schulz_dtype is "
                "auto, float32 or bfloat16"
            )

    def make(self) -> optax.GradientTransformation:
        """Clips the global norm, then Muon or AdamW by the name of the parameter."""
        pattern, dtype = MATRICES[self.matrices], self.newton_schulz_dtype
        if dtype == "auto":
            dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
        hidden = optax.chain(
            muon.scale_by_muon(self.momentum, self.newton_schulz_steps, jnp.dtype(dtype)),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(self.learning_rate),
        )
        adam = _adamw(self, self.b1, self.b2, self.eps, self.adam_scale)
        parts: dict[Hashable, optax.GradientTransformation] = {"muon": hidden, "adam": adam}
        return _clipped(self.clip_norm, optax.partition(parts, functools.partial(_label, pattern)))


def _adamw(config: Optimizer, b1: float, b2: float, eps: float, scale: float = 1.0) -> optax.GradientTransformation:
    def learning_rate(step: Any) -> Any:
        return scale * config.learning_rate(step)

    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=config.weight_decay, mask=_is_decayed)


def _clipped(norm: float | None, transform: optax.GradientTransformation) -> optax.GradientTransformation:
    return transform if norm is None else optax.chain(optax.clip_by_global_norm(norm), transform)


def _is_decayed(params: optax.Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: _matches(DECAYED, path), params)


def _label(pattern: str, params: optax.Params) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: "muon" if _matches(pattern, path) else "adam", params)


def _matches(pattern: str, path: tuple[Any, ...]) -> bool:
    return re.search(pattern, rules.name_of(path)) is not None
