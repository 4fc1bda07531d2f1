"""The conditions of a network: what each consists of, where it joins, and what stands for it when it is left out.

    condition        fields; details                     joins     tokens         left out                   drop rate
    text             text_ids, text; text_mask           tokens    its length     zeros, mask True at 0 only  0.1
    r                r                                   vector
    guidance_scale   guidance_scale                      vector
    pooled           pooled                              vector                   zeros                       0.1
    aligned          aligned                             channels                 zeros                       0
    frames           frames; frame_times, frame_roles    frames    those frames   zeros at time 1 (noise)     0
    palette          palette; palette_mask               tokens    one a colour   zeros, mask False           0
    task             task                                tokens    1

Conditions without a drop rate are inputs that are never left out. Dropping and null forms (`diffusion.conditioning`),
the DiT, its FLOPs, growth and requests all go through this table, so adding a condition takes two places, an entry and
an embedder (`models.embedders`):

    conditions.register(conditions.Condition(
        name="aesthetic", fields=("aesthetic",), joins="vector", parameters=("aesthetic_embed",),
        null={"aesthetic": lambda score: jnp.full_like(score, -1)}, drop_rate=0.1, is_guided=True,
    ))

    @embedders.register("aesthetic")
    def embed_aesthetic(network, cond, t):
        score = cond.get("aesthetic")
        score = jnp.full(t.shape[0], -1.0) if score is None else score
        return embedders.embed_scalar(network, "aesthetic_embed", score[:, None])

    DiT(.., extra_conditions=("aesthetic",))          Conditioning(.., extra={"aesthetic": scores})

A run that reads such a condition is trained and loaded by programs that registered it. The order of the table is that
of sums inside the network and of the random bits that drop conditions: saved runs rely on it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array

from nova_jax.types import Conditioning

Joins = Literal["tokens", "frames", "channels", "vector"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """One condition of a network.

    Attributes:
        name: of the condition in drop rates, guidance and embedders.
        fields: its arrays in a `Conditioning`; each of them alone is enough.
        details: arrays that describe them. One named `.._mask` marks what is real; see `types.as_mask`.
        joins: as further `tokens` of the text, as extra `frames`, as `channels` of the latents, or as a `vector` that
            modulates every layer.
        setting: the field of the network that switches it on; None: the network's `extra_conditions`, or always.
        parameters: names of the parameters that a network without it lacks.
        null: what an array becomes when the condition is left out; zeros where nothing is stated.
        implied: what a missing detail stands for, from the other arrays.
        drop_rate: the share of training samples from which it is left out; None: it never is.
        is_guided: whether guidance strengthens it in a request, by leaving it out of the other answer.
    """

    name: str
    fields: tuple[str, ...]
    details: tuple[str, ...] = ()
    joins: Joins
    setting: str | None = None
    parameters: tuple[str, ...] = ()
    null: Mapping[str, Callable[[Array], Array]] = dataclasses.field(default_factory=dict)
    implied: Mapping[str, Callable[[Conditioning], Array]] = dataclasses.field(default_factory=dict)
    drop_rate: float | None = None
    is_guided: bool = False

    def value(self, cond: Conditioning) -> Any:
        """Its first array that is present; None where the condition is absent."""
        return next((cond.get(name) for name in self.fields if cond.get(name) is not None), None)

    def left_out(self, cond: Conditioning) -> Conditioning:
        """The conditions without this one, in the form that networks learn as its absence."""
        arrays = {name: cond.get(name) for name in (*self.fields, *self.details)}
        return cond.put(**{k: self.null.get(k, jnp.zeros_like)(a) for k, a in arrays.items() if a is not None})

    def size(self, cond: Conditioning) -> int:
        """The tokens of the text, or the frames, that it adds to each sample."""
        value = self.value(cond)
        if value is None or self.joins not in ("tokens", "frames"):
            return 0
        return value.shape[1] if value.ndim > 1 else 1


class Sizes(NamedTuple):
    """What decides the cost of conditions: text positions, extra frames, and further tokens beside the text."""

    text: int
    frames: int
    tokens: int


def _real_text(cond: Conditioning) -> Array:
    if cond.text is not None:
        return jnp.ones(cond.text.shape[:2], bool)
    assert cond.text_ids is not None
    return (cond.text_ids != 0).reshape(*cond.text_ids.shape[:2], -1).any(axis=-1)


BUILT_IN = (
    Condition(
        name="text",
        fields=("text_ids", "text"),
        details=("text_mask",),
        joins="tokens",
        null={"text_mask": lambda mask: jnp.zeros_like(mask).at[:, 0].set(True)},
        implied={"text_mask": _real_text},
        drop_rate=0.1,
        is_guided=True,
    ),
    Condition(
        name="r",
        fields=("r",),
        joins="vector",
        setting="has_second_time",
        parameters=("time_embed_r",),
    ),
    Condition(
        name="guidance_scale",
        fields=("guidance_scale",),
        joins="vector",
        setting="has_guidance",
        parameters=("guidance_embed",),
    ),
    Condition(
        name="pooled",
        fields=("pooled",),
        joins="vector",
        setting="pooled_dim",
        parameters=("pooled_embed",),
        drop_rate=0.1,
        is_guided=True,
    ),
    Condition(
        name="aligned",
        fields=("aligned",),
        joins="channels",
        setting="aligned_channels",
        parameters=("patch_embed_aligned",),
        drop_rate=0.0,
    ),
    Condition(
        name="frames",
        fields=("frames",),
        details=("frame_times", "frame_roles"),
        joins="frames",
        setting="num_frame_roles",
        parameters=("frame_roles",),
        null={"frame_times": jnp.ones_like, "frame_roles": lambda roles: roles},  # time 1: noise, no information
        implied={"frame_times": lambda cond: jnp.zeros(cond.get("frames").shape[:2])},  # clean
        drop_rate=0.0,
    ),
    Condition(
        name="palette",
        fields=("palette",),
        details=("palette_mask",),
        joins="tokens",
        setting="has_palette",
        parameters=("palette_embed",),
        implied={"palette_mask": lambda cond: jnp.ones(cond.get("palette").shape[:2], bool)},
        drop_rate=0.0,
        is_guided=True,
    ),
    Condition(
        name="task",
        fields=("task",),
        joins="tokens",
        setting="num_tasks",
        parameters=("task_embed",),
    ),
)
CONDITIONS: dict[str, Condition] = {condition.name: condition for condition in BUILT_IN}


def register(condition: Condition) -> Condition:
    """Adds a condition of your own; registering it again replaces it.

    Raises:
        ValueError: its name, or that of one of its arrays, is taken.
    """
    names = {condition.name, *condition.fields, *condition.details}
    if taken := sorted(names & set(Conditioning._fields)):
        raise ValueError(f"{', '.join(taken)} belongs to a condition of the library: choose another name")
    CONDITIONS[condition.name] = condition
    return condition


def find(name: str) -> Condition:
    """A condition by its name.

    Raises:
        ValueError: there is none.
    """
    if name not in CONDITIONS:
        raise ValueError(
            f"there is no condition {name!r} among {', '.join(CONDITIONS)}: import the module that registers it first"
        )
    return CONDITIONS[name]


def registered_arrays() -> set[str]:
    """The names of arrays of all conditions that are not the library's own."""
    own = [c for c in CONDITIONS.values() if c not in BUILT_IN]
    return {name for c in own for name in (*c.fields, *c.details)}


def dropped() -> dict[str, float]:
    """The conditions that may be left out, and their default drop rates."""
    return {name: c.drop_rate for name, c in CONDITIONS.items() if c.drop_rate is not None}


def from_arrays(arrays: Mapping[str, Any]) -> Conditioning:
    """The conditions among named arrays, such as those of a training batch."""
    names = {name for c in CONDITIONS.values() for name in (*c.fields, *c.details)}
    return Conditioning().put(**{name: array for name, array in arrays.items() if name in names})


def sizes(cond: Conditioning) -> Sizes:
    """What the conditions of a batch add to each of its samples."""
    others = [c for c in CONDITIONS.values() if c.name != "text"]
    frames, tokens = (sum(c.size(cond) for c in others if c.joins == joins) for joins in ("frames", "tokens"))
    return Sizes(CONDITIONS["text"].size(cond), frames, tokens)
