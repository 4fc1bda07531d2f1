"""How each condition enters a `DiT`: one function per entry of `nova_jax.conditions`, called inside the network.

A function takes the network, whose fields it reads, the conditions, and one thing more by where its condition joins:

    channels     x                        tokens (b, n, d) that are added to those of the latents, or None
    frames       x, the patch embedding   tokens (b, n, d) of g frames, and their times (b, g); None: no frames
    vector       t (b, m), see below      (b, 1, d) or (b, m, d) that is added to the embedding of time, in float32
    tokens       the batch size           tokens (b, p, d), and which of them are real (b, p); None: all

Tokens of channels and frames are made of patches that `embeddings.to_tokens` has put in order.
t has one column per sample, or one per frame, those of extra frames last. Layers are named by their parameter path. A
function creates its layers whether the condition is there or not: applied to arrays of size 0 they cost nothing. What
starts at zero lets a trained network grow by the condition without changing its output.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from nova_jax import conditions
from nova_jax.conditions import Condition
from nova_jax.layers import attention, embeddings, linear, modulation
from nova_jax.models import flops
from nova_jax.parallel.constrain import constrain
from nova_jax.types import Conditioning, Latents, as_mask

Tokens = tuple[Float[Array, "b p d"], Bool[Array, "b p"] | None]
ZEROS = nn.initializers.zeros


class Embedder(NamedTuple):
    """The function of a condition, and its FLOPs for one sample, from (network, tokens, rows of modulation)."""

    embed: Callable[..., Any]
    cost: Callable[[Any, int, int], int]


EMBEDDERS: dict[str, Embedder] = {}


def _free(network: Any, tokens: int, rows: int) -> int:
    return 0


def register(name: str, cost: Callable[[Any, int, int], int] = _free) -> Callable[..., Any]:
    """Makes the decorated function the embedder of a condition.

    `cost` counts what it computes beside tokens and frames, which cost as much as those of the text and of the latents.
    """

    def add(embed: Callable[..., Any]) -> Callable[..., Any]:
        EMBEDDERS[name] = Embedder(embed, cost)
        return embed

    return add


def read_by(network: Any, joins: conditions.Joins | None = None) -> list[Condition]:
    """The conditions that a network has inputs for, in the order of their sums; `joins` selects one way.

    Raises:
        ValueError: one of its `extra_conditions` is not registered.
    """
    built_in = [c for c in conditions.BUILT_IN if c.setting is None or getattr(network, c.setting)]
    own = [conditions.find(name) for name in network.extra_conditions]
    if missing := [c.name for c in own if c.name not in EMBEDDERS]:
        raise ValueError(f"the condition {missing[0]!r} has no embedder: register one in nova_jax.models.embedders")
    return [c for c in (*built_in, *own) if joins in (None, c.joins)]


def embed(network: Any, joins: conditions.Joins, cond: Conditioning, *arguments: Any) -> list[Any]:
    """What the embedders of the conditions that join in this way return, for every one that the network reads."""
    return [EMBEDDERS[c.name].embed(network, cond, *arguments) for c in read_by(network, joins)]


def join_tokens(
    network: Any, cond: Conditioning, batch_size: int
) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"] | Int[Array, " b"] | None]:
    """The text and the conditions that are read like words of it, and which of them are real; None: all.

    Attention to them knows no order. Where its kernel wants the number of real ones, these are put first, once.
    """
    text, *others = embed(network, "tokens", cond, batch_size)
    parts = [text, *(part for part in others if part[0].shape[1])]
    tokens, mask = jnp.concatenate([tokens for tokens, _ in parts], axis=1), None
    if any(mask is not None for _, mask in parts):
        masks = [jnp.ones(tokens.shape[:2], bool) if mask is None else mask for tokens, mask in parts]
        mask = jnp.concatenate(masks, axis=1)
        head_dim = network.width // network.num_heads
        if attention.reads_lengths(network.attention_implementation, network.dtype, head_dim):
            mask, tokens = attention.real_first(mask, tokens)
    return constrain(tokens, "batch", "text", "width"), mask


def cost(network: Any, tokens: int, rows: int) -> int:
    """Forward FLOPs of the embedders of a network, beside those of its text, for one sample."""
    return sum(EMBEDDERS[c.name].cost(network, tokens, rows) for c in read_by(network))


def check(network: Any, cond: Conditioning) -> None:
    """Refuses conditions that a network has no input for.

    Raises:
        ValueError: the condition, and the setting that adds its input.
    """
    for condition in conditions.BUILT_IN:
        setting = condition.setting
        if setting and not getattr(network, setting) and condition.value(cond) is not None:
            raise ValueError(
                f"cond.{condition.name} is present, but this network has {setting}={getattr(network, setting)}"
            )
    if cond.text_keys is not None and network.text_attention == "joint":
        raise ValueError("cond.text_keys is present, but text_attention='joint' has no keys of the text alone")
    known = {name for c in read_by(network) for name in (*c.fields, *c.details)}
    if unread := sorted(set(cond.extra or ()) - known):
        raise ValueError(
            f"cond.extra has {unread[0]!r}, but this network has extra_conditions={network.extra_conditions}"
        )


def embed_scalar(
    network: Any, name: str, value: Float[Array, "b m"], out_init: nn.initializers.Initializer = ZEROS
) -> Float[Array, "b m d"]:
    """Sinusoids of time_scale * value, then two linear layers, of which the last starts at zero."""
    features = embeddings.timestep_features(network.time_scale * value, network.freq_dim)
    return embeddings.Embedder(network.width, out_init=out_init, name=name)(features)


def _scalar_cost(network: Any, tokens: int, rows: int) -> int:
    return flops.two_layers(network.freq_dim, network.width, rows)


@register("text")
def embed_text(network: Any, cond: Conditioning, batch_size: int) -> Tokens:
    """Text states at the width of the network; without text the null caption, one state of zeros."""
    text, mask = cond.text, cond.text_mask
    if text is None and cond.text_ids is not None:
        raise ValueError("cond.text_ids needs a text encoder: wrap this network in TextToLatent, or set cond.text")
    if text is None:
        text, mask = jnp.zeros((batch_size, 1, network.text_dim)), None
    if text.shape[-1] != network.text_dim:
        raise ValueError(f"cond.text has width {text.shape[-1]}; this network has text_dim={network.text_dim}")
    mask = None if mask is None else as_mask(mask)
    if mask is not None and not network.masks_text:
        text, mask = jnp.where(mask[:, :, None], text, 0), None
    gelu = functools.partial(jax.nn.gelu, approximate=True)
    return embeddings.Embedder(network.width, gelu, dtype=network.dtype, name="text_embed")(text), mask


@register("palette")
def embed_palette(network: Any, cond: Conditioning, batch_size: int) -> Tokens:
    """A token for each colour."""
    colors = jnp.zeros((batch_size, 0, 3)) if cond.palette is None else cond.palette
    mask = None if cond.palette is None or cond.palette_mask is None else as_mask(cond.palette_mask)
    return embeddings.Embedder(network.width, dtype=network.dtype, name="palette_embed")(colors), mask


@register("task")
def embed_task(network: Any, cond: Conditioning, batch_size: int) -> Tokens:
    """One token, from a table."""
    task = jnp.zeros((batch_size, 0), jnp.int32) if cond.task is None else cond.task[:, None]
    init = nn.initializers.normal(0.02)
    table = nn.Embed(network.num_tasks, network.width, dtype=network.dtype, embedding_init=init, name="task_embed")
    return table(task), None


@register("r", _scalar_cost)
def embed_r(network: Any, cond: Conditioning, t: Float[Array, "b m"]) -> Float[Array, "b m d"]:
    """Of t - r, the time to cover; 0 for extra frames, and for frames that are already cleaner than r."""
    r = t
    if cond.r is not None:
        count = t.shape[1] - conditions.sizes(cond).frames
        r = jnp.concatenate([jnp.broadcast_to(cond.r[:, None], (t.shape[0], count)), t[:, count:]], axis=1)
    return embed_scalar(network, "time_embed_r", jnp.where(t >= r, t - r, 0.0))


@register("guidance_scale", _scalar_cost)
def embed_guidance(network: Any, cond: Conditioning, t: Float[Array, "b m"]) -> Float[Array, "b 1 d"]:
    """Of the scale; 1 where there is none."""
    scale = jnp.ones(t.shape[0]) if cond.guidance_scale is None else cond.guidance_scale
    return embed_scalar(network, "guidance_embed", scale[:, None])


@register("pooled", lambda network, tokens, rows: flops.two_layers(network.pooled_dim, network.width))
def embed_pooled(network: Any, cond: Conditioning, t: Float[Array, "b m"]) -> Float[Array, "b 1 d"]:
    """One vector of each sample; zeros where there is none."""
    pooled = jnp.zeros((t.shape[0], network.pooled_dim)) if cond.pooled is None else cond.pooled
    return embeddings.Embedder(network.width, out_init=ZEROS, name="pooled_embed")(pooled)[:, None]


def _aligned_cost(network: Any, tokens: int, rows: int) -> int:
    return 2 * tokens * math.prod(network.patch_size) * network.aligned_channels * network.width


@register("aligned", _aligned_cost)
def embed_aligned(network: Any, cond: Conditioning, x: Latents) -> Float[Array, "b n d"] | None:
    """Patches of what lies pixel on pixel with the latents, through weights of its own that start at zero."""
    size = network.aligned_channels
    if cond.aligned is not None and cond.aligned.shape[-1] != size:
        raise ValueError(
            f"cond.aligned has {cond.aligned.shape[-1]} channels; this network has aligned_channels={size}"
        )
    aligned = jnp.zeros((0, *x.shape[1:4], size)) if cond.aligned is None else cond.aligned
    layer = linear.Dense(network.width, False, ZEROS, dtype=network.dtype, name="patch_embed_aligned")
    joined = layer(embeddings.to_tokens(embeddings.patchify(aligned, network.patch_size)))
    return None if cond.aligned is None else joined


@register("frames")
def embed_frames(
    network: Any, cond: Conditioning, x: Latents, embed_patches: Callable[[Array], Array]
) -> tuple[Float[Array, "b n d"], Float[Array, "b g"] | None]:
    """Patches of further frames, through the weights of the latents, and a vector for the role of each frame."""
    frames = x[:, :0] if cond.frames is None else cond.frames
    roles = jnp.zeros(frames.shape[:2], jnp.int32) if cond.frame_roles is None else cond.frame_roles
    init = nn.initializers.normal(0.02)
    table = nn.Embed(
        network.num_frame_roles, network.width, dtype=network.dtype, embedding_init=init, name="frame_roles"
    )
    patches = embeddings.patchify(frames, network.patch_size)
    tokens, rows = embed_patches(embeddings.to_tokens(patches)), table(roles)
    if count := frames.shape[1]:
        belongs = modulation.token_frames((count,), math.prod(patches.shape[2:4]))
        tokens = tokens + modulation.per_token(rows, tokens.shape[1], belongs)
    if cond.frames is None:
        return tokens, None
    return tokens, jnp.zeros(frames.shape[:2]) if cond.frame_times is None else cond.frame_times
