"""The vocabulary: what flows between models, diffusion, sampling and training.

Conventions, everywhere in the library:

    time      t in [0, 1]: 0 = data, 1 = noise; x_t = alpha(t) x0 + sigma(t) eps
    pixels    b f h w c, float, -1 .. 1; an image is one frame
    latents   b f h w c; channels last
    params    plain nested dicts of arrays

Arrays travel in NamedTuples, choices in frozen dataclasses. The letters of the shapes: `b` batch, `f` frames, `h w`
space, `c` channels, `a` aligned channels, `g` extra frames, `p` colours, `n` tokens, `l` text length, `d` width, `k`
heads, `q` head size.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer, Key, PRNGKeyArray

Params = Mapping[str, Any]
Metrics = Mapping[str, Array]
Pixels = Float[Array, "b f h w c"]
Latents = Float[Array, "b f h w c"]
Times = Float[Array, " b"] | Float[Array, "b f"]
Samples = Float[Array, "b *dims"]
Time = Float[Array, ""]
Keys = Key[Array, " b"] | None  # one per sample, where something is random
Mask = Bool[Array | np.ndarray, "b l"] | Integer[Array | np.ndarray, "b l"]  # True or 1: real; see `as_mask`


class TextKeys(NamedTuple):
    """What cross-attention reads of the text and of all that joins as tokens: keys and values of every layer."""

    keys: Float[Array, "b m l k q"]  # of m layers
    values: Float[Array, "b m l k q"]
    mask: Bool[Array, "b l"] | Int[Array, " b"] | None  # which are real, or how many if these come first; None: all


class Conditioning(NamedTuple):
    """What a network reads besides x and t; parts that are absent are None. `nova_jax.conditions` lists them.

    Text arrives either as states of a frozen encoder (`text`) or as token ids for an encoder that is trained inside the
    network (`text_ids`, one number or several a position); `text_mask` marks the real positions of either. What lies
    pixel on pixel with the target is `aligned`; what does not joins as extra `frames`, each with a role and its own
    time (0 = clean). The colours of a `palette` and the `task` are read like words of the text. Conditions that you
    register yourself lie in `extra`, a dict of arrays by name. `text_keys` stand for all that joins as tokens, made
    once for all evaluations of a sample (`models.text_keys`).
    """

    text: Float[Array, "b l d"] | None = None
    text_ids: Int[Array, "b l"] | Int[Array, "b l w"] | None = None
    text_mask: Mask | None = None
    pooled: Float[Array, "b p"] | None = None
    aligned: Float[Array, "b f h w a"] | None = None
    frames: Float[Array, "b g h w c"] | None = None
    frame_roles: Int[Array, "b g"] | None = None
    frame_times: Float[Array, "b g"] | None = None
    palette: Float[Array, "b p 3"] | None = None  # CIE Lab over 100
    palette_mask: Bool[Array, "b p"] | Integer[Array, "b p"] | None = None
    task: Int[Array, " b"] | None = None
    r: Float[Array, " b"] | None = None  # target time of a flow map, r <= t
    guidance_scale: Float[Array, " b"] | None = None  # as a network input
    extra: dict[str, Array] | None = None
    text_keys: TextKeys | None = None

    def get(self, name: str) -> Any:
        """The array of this name, a field or in `extra`; None where it is absent."""
        return getattr(self, name) if name in _FIELDS else (self.extra or {}).get(name)

    def put(self, **arrays: Any) -> "Conditioning":
        """A copy with these arrays in place: in their fields, or in `extra` where there is no such field."""
        own = {name: array for name, array in arrays.items() if name not in _FIELDS}
        fields = {name: array for name, array in arrays.items() if name in _FIELDS}
        return self._replace(**fields, **({"extra": {**(self.extra or {}), **own}} if own else {}))


_FIELDS = frozenset(Conditioning._fields) - {"extra", "text_keys"}


class Batch(NamedTuple):
    """One training batch: clean latents (or pixels, for an autoencoder) and the conditions to learn them under."""

    x0: Float[Array, "b f h w c"]
    cond: Conditioning = Conditioning()


class Denoised(NamedTuple):
    """Both ends of the line through x_t: every prediction kind converts to this pair."""

    x0: Float[Array, "b *dims"]
    eps: Float[Array, "b *dims"]


class Sampled(NamedTuple):
    """A sampler's result: x at t = times[-1], and the denoiser evaluations spent on each sample."""

    x: Float[Array, "b *dims"]
    nfe: Int[Array, ""]


class TrainState(NamedTuple):
    """All that a run must save to continue to the bit: everything random derives from (seed, step)."""

    step: Int[Array, ""]
    params: Params
    ema: Params
    opt_state: Any
    extra: Any = ()


@runtime_checkable
class Network(Protocol):
    """A parametrised prediction: velocity, x0, eps or v, as the objective declares."""

    def __call__(self, params: Params, x: Array, t: Array, cond: Conditioning) -> Array: ...


@runtime_checkable
class Denoiser(Protocol):
    """What samplers, guidance and tasks call."""

    def __call__(self, x: Array, t: Array, cond: Any) -> Denoised: ...


@runtime_checkable
class Objective(Protocol):
    """A training loss: scalar to minimise, and named scalars (or small arrays) to log."""

    def __call__(
        self, network: Any, params: Params, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Float[Array, ""], Metrics]: ...


@runtime_checkable
class TrainStep(Protocol):
    """The only thing the training loop knows."""

    def __call__(self, state: TrainState, batch: Any) -> tuple[TrainState, Metrics]: ...


def as_mask(mask: Any) -> Bool[Array, "b l"]:
    """A mask of True (real) and False (padding), from one of these or of the integers 1 and 0 of public tokenizers.

    Raises:
        TypeError: numbers of another kind, such as the 0 and -inf that are added to attention scores.
        ValueError: integers other than 0 and 1; not seen while a function is traced.
    """
    is_known = not isinstance(mask, jax.core.Tracer)
    mask = mask if isinstance(mask, (jax.Array, np.ndarray)) else np.asarray(mask)
    if mask.dtype == bool:
        return jnp.asarray(mask)
    if not jnp.issubdtype(mask.dtype, jnp.integer):
        raise TypeError(
            f"a mask of {mask.dtype}: give booleans, or the integers 1 (real) and 0 (padding) as tokenizers do; of a "
            "mask that is added to attention scores, 0 for real positions, give `mask == 0`"
        )
    if is_known and (other := np.setdiff1d(np.asarray(mask), (0, 1))).size:
        raise ValueError(f"a mask with the value {other[0]}: its integers are 1 (real) and 0 (padding)")
    return jnp.asarray(mask != 0)
