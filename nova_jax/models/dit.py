"""A diffusion transformer for images and video: the Wan block, with inputs for conditions.

    tokens  = patches(x) W + channels + places(row, column) P, then extra frames      3D RoPE, one token per patch
    text    = text_embed(states), tokens
    e       = time_embed(time_scale t) + vectors
    m       = time_modulation(silu(e)) + modulation_i            six of width d: shift, scale, gate, twice
    block_i:  x += gate_1 SelfAttention(LN(x) (1 + scale_1) + shift_1)
              x += CrossAttention(LN(x), text)
              x += gate_2 MLP(LN(x) (1 + scale_2) + shift_2)
    head:     LN(x) (1 + scale) + shift,  (shift, scale) = head_modulation + e,  then a linear layer to patches

Conditions join as channels, extra frames, tokens or vectors: `nova_jax.conditions` lists them, and `models.embedders`
has a function for each.

With `text_attention="joint"` there is no cross-attention: text tokens stand beside those of the latents, as in MMDiT
(Esser et al. 2024, arXiv:2403.03206), but share their weights.

Full self-attention over all frames, RMS-normalised queries and keys, GELU-tanh MLP; modulation, norms and softmax in
float32. `DiT(qk_norm="across_heads", gate_init="random", masks_text=False, ..)` is exactly the published Wan 2.1 and
2.2 transformer.

Peebles & Xie 2022, arXiv:2212.09748 (adaLN-zero); Chen et al. 2023, PixArt-alpha, arXiv:2310.00426 (adaLN-single);
Wan Team 2025, arXiv:2503.20314 (the block); Geng et al. 2025, MeanFlow, arXiv:2505.13447 (the second time as t - r).
"""

import functools
import math
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from nova_jax.layers import attention, embeddings, linear, modulation, norms, rope, stack
from nova_jax.models import embedders, flops
from nova_jax.parallel import context as contexts
from nova_jax.parallel.constrain import constrain
from nova_jax.types import Conditioning, Latents, Times

GateInit = Literal["zero", "random"]
TextAttention = Literal["cross", "joint"]


class Context(NamedTuple):
    """What every block reads beside its tokens."""

    shared: Float[Array, "b m s"]  # s = 6 d; m = 1, or one row per frame
    text: Float[Array, "b l d"] | None  # None: among the tokens, or its keys are there already
    mask: attention.KeyMask  # of the text; None: all of it is real
    rotation: rope.Rotation
    real: attention.KeyMask = None  # tokens that may be attended to; None: all
    frames: modulation.Membership = None  # of the tokens, where they are not equal parts in order


LayerKeys = tuple[attention.Keys, attention.Keys]


class MLP(nn.Module):
    """Linear, GELU (tanh form), linear."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"]) -> Float[Array, "b n d"]:
        """Returns W_down gelu(W_up x)."""
        up = checkpoint_name(linear.Dense(self.hidden, dtype=self.dtype, name="up")(x), "fc1")
        hidden = constrain(linear.gelu(up), "batch", "tokens", "mlp")
        down = linear.Dense(x.shape[-1], dtype=self.dtype, saved="fc2", name="down")(hidden)
        return constrain(down, "batch", "tokens", "width")


class Block(nn.Module):
    """Self-attention, cross-attention to the text, MLP. With `gate_init="zero"` it starts as the identity."""

    num_heads: int
    mlp_dim: int
    qk_norm: attention.QKNorm
    cross_norm_affine: bool
    eps: float
    gate_init: GateInit
    attention_implementation: attention.Implementation | None
    dtype: Any
    ulysses_degree: int | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], context: Context, keys: LayerKeys | None = None
    ) -> tuple[Float[Array, "b n d"], None]:
        """One layer, in the form `stack.scan_blocks` wants; `keys` are this layer's of the text, made before."""
        width = x.shape[-1]
        attend = functools.partial(
            attention.MultiHeadAttention,
            num_heads=self.num_heads,
            qk_norm=self.qk_norm,
            eps=self.eps,
            implementation=self.attention_implementation,
            ulysses_degree=self.ulysses_degree,
            dtype=self.dtype,
        )
        out_init = nn.initializers.zeros if self.gate_init == "zero" else nn.initializers.xavier_uniform()
        table = self.param("modulation", _table_init(self.gate_init), (6, width), jnp.float32)
        m = context.shared.reshape(*context.shared.shape[:2], 6, width) + table[None, None]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (m[:, :, i] for i in range(6))

        reads_text = keys is not None or context.text is not None
        h = modulation.modulate(x, shift_1, scale_1, self.eps, context.frames)
        h = constrain(h, "batch", "tokens", "width")
        h = attend(name="self_attention")(h, h, rotation=context.rotation, mask=context.real)
        x = modulation.add_gated(x, h, gate_1, context.frames)
        if reads_text:
            x = x + self._read_text(x, attend(name="cross_attention", out_init=out_init), context, keys)

        h = modulation.modulate(x, shift_2, scale_2, self.eps, context.frames)
        h = constrain(h, "batch", "tokens", "width")
        h = MLP(self.mlp_dim, dtype=self.dtype, name="mlp")(h)
        x = modulation.add_gated(x, h, gate_2, context.frames)
        return constrain(x, "batch", "tokens", "width"), None

    def _read_text(
        self, x: Float[Array, "b n d"], attend: Any, context: Context, keys: LayerKeys | None
    ) -> Float[Array, "b n d"]:
        cross_norm = norms.LayerNorm(self.eps, self.cross_norm_affine, name="cross_norm")
        h = constrain(cross_norm(x).astype(x.dtype), "batch", "tokens", "width")
        return attend(h, context.text, mask=context.mask, keys=keys)


class DiT(nn.Module):
    """Diffusion transformer; `DiT(..)(x, t, cond)` predicts what its objective says, in the shape of x.

    Sizes have no defaults that suit every data set: start from `nova_jax.models.presets.dit`.
    """

    width: int
    depth: int
    num_heads: int
    in_channels: int
    text_dim: int
    out_channels: int | None = None  # None: in_channels
    patch_size: tuple[int, int, int] = (1, 2, 2)
    mlp_dim: int | None = None  # None: 4 width
    freq_dim: int = 256
    time_scale: float = 1000.0  # t in [0, 1] is embedded as time_scale * t
    rope_theta: float = 10_000.0
    qk_norm: attention.QKNorm = "per_head"
    cross_norm_affine: bool = True
    eps: float = 1e-6
    gate_init: GateInit = "zero"
    masks_text: bool = True  # False: padded text positions are zeros and are attended to, as in Wan
    text_attention: TextAttention = "cross"  # "joint": text tokens take part in the self-attention instead
    pooled_dim: int = 0  # width of cond.pooled, one vector per sample that modulates every layer
    has_absolute_positions: bool = False  # tokens know where in the frame they lie, not only where to each other
    aligned_channels: int = 0  # channels of cond.aligned
    num_frame_roles: int = 0  # kinds of extra frames in cond.frames
    has_palette: bool = False  # reads cond.palette
    num_tasks: int = 0  # values of cond.task
    has_second_time: bool = False  # reads cond.r
    has_guidance: bool = False  # reads cond.guidance_scale
    extra_conditions: tuple[str, ...] = ()  # conditions of your own, registered in `nova_jax.conditions`
    attention_implementation: attention.Implementation | None = None
    ulysses_degree: int | None = None  # devices of mesh.context that trade tokens for heads; None: all that heads allow
    remat: stack.Remat = "names"
    scan_unroll: int = 1  # layers per turn of the loop over depth; depth: no loop
    dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        if self.width % (2 * self.num_heads):
            raise ValueError(f"width {self.width} must split into {self.num_heads} heads of an even size")
        has_frames = embedders.read_by(self, "frames")
        if has_frames and self.patch_size[0] != 1:
            raise ValueError(f"extra frames need patches of one frame, not patch_size={self.patch_size}")
        if has_frames and self.text_attention == "joint":
            raise ValueError("text tokens have no frame whose time they share: use text_attention='cross' with frames")
        super().__post_init__()

    def __call__(
        self, x: Float[Array, "b f h w c"], t: Times, cond: Conditioning | None = None
    ) -> Float[Array, "b f h w o"]:
        """Predicts velocity, x0, eps or v at x_t.

        Args:
            x: noisy latents.
            t: time of each sample, or of each frame.
            cond: what is None takes its neutral value: `text` the null caption (one state, all zeros), `pooled` and
                `aligned` zeros, `r` t, `guidance_scale` 1, `frame_roles` and `frame_times` 0. Extra `frames` lie at
                -1, -2, .. in time. Without `palette` or `task` their tokens are left out, at no cost. `text_keys` take
                the place of all that joins as tokens (`models.text_keys`).

        Raises:
            ValueError: `cond` holds what this network has no input for.
        """
        return self._forward(x, t, cond or Conditioning())[1]

    def hidden_tokens(self, x: Latents, t: Times, cond: Conditioning | None = None) -> Float[Array, "b n d"]:
        """What the head reads: the tokens after the last layer, those of extra frames last; see `__call__`."""
        return self._forward(x, t, cond or Conditioning())[0]

    @nn.compact  # Flax allows one such method: it returns both results, and the compiler drops the one that is not used
    def _forward(
        self, x: Latents, t: Times, cond: Conditioning
    ) -> tuple[Float[Array, "b n d"], Float[Array, "b f h w o"]]:
        if x.shape[-1] != self.in_channels:
            raise ValueError(f"x has {x.shape[-1]} channels; this network has in_channels={self.in_channels}")
        embedders.check(self, cond)
        grid = tuple(size // patch for size, patch in zip(x.shape[1:4], self.patch_size, strict=True))
        tokens, counts, extra_times = self._embed_latents(x, cond)
        e = self._embed_times(t, extra_times, cond, grid[0])
        shared_init = nn.initializers.zeros if self.gate_init == "zero" else nn.initializers.normal(0.02)
        shared = linear.Dense(6 * self.width, kernel_init=shared_init, name="time_modulation")(jax.nn.silu(e))
        shared = constrain(shared, "batch", None, "width")
        keys = cond.text_keys
        text, text_mask = embedders.join_tokens(self, cond, x.shape[0]) if keys is None else (None, keys.mask)
        lengths = tuple(count * grid[1] * grid[2] for count in counts)
        rotation, real = self._lay_out(counts, lengths, grid, x.shape[0])
        frames = modulation.token_frames(counts, grid[1] * grid[2]) if shared.shape[1] > 1 else None
        context = Context(shared, text, text_mask, rotation, real, frames)
        if self.text_attention == "joint":
            assert text is not None  # `embedders.check` refuses keys in its place
            tokens, context = _join_text(tokens, context)
            lengths += text.shape[1:2]

        in_axes = nn.broadcast, 1  # the context, and keys[B, layers, L, K, Q]
        blocks = stack.scan_blocks(Block, self.depth, remat=self.remat, unroll=self.scan_unroll, in_axes=in_axes)
        if self.dtype != jnp.float32 and not self.is_initializing():
            blocks = stack.cast_once(blocks, self.dtype)
        blocks = blocks(
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim or 4 * self.width,
            qk_norm=self.qk_norm,
            cross_norm_affine=self.cross_norm_affine,
            eps=self.eps,
            gate_init=self.gate_init,
            attention_implementation=self.attention_implementation,
            ulysses_degree=self.ulysses_degree,
            dtype=self.dtype,
            name="blocks",
        )
        tokens, _ = blocks(tokens, context, None if keys is None else (keys.keys, keys.values))
        hidden = [contexts.part(tokens, lengths, i) for i in range(len(counts))]
        return jnp.concatenate(hidden, axis=1), self._predict(tokens, e, grid, lengths, frames)

    @nn.nowrap
    def flops(
        self, latent_shape: tuple[int, int, int], text_length: int, extra_frames: int = 0, extra_text: int = 0
    ) -> int:
        """Forward FLOPs of one sample of latents (f, h, w); see `models.flops`.

        Args:
            latent_shape: frames, height, width.
            text_length: text states.
            extra_frames: frames beside the target.
            extra_text: tokens of other conditions, counted as if embedded as states are.
        """
        f, h, w = (size // patch for size, patch in zip(latent_shape, self.patch_size, strict=True))
        patch = math.prod(self.patch_size)
        sizes = flops.Transformer(
            width=self.width,
            depth=self.depth,
            mlp_dim=self.mlp_dim or 4 * self.width,
            patch_in=patch * self.in_channels,
            patch_out=patch * (self.out_channels or self.in_channels),
            text_dim=self.text_dim,
            freq_dim=self.freq_dim,
            text_attention=self.text_attention,
        )
        tokens, rows = (f + extra_frames) * h * w, f + extra_frames if extra_frames else 1
        text = max(text_length, 1) + extra_text
        return sizes.forward(tokens, text, rows) + embedders.cost(self, tokens, rows)

    def _embed_latents(
        self, x: Latents, cond: Conditioning
    ) -> tuple[Float[Array, "b n d"], tuple[int, ...], Float[Array, "b g"] | None]:
        """Tokens of the latents, then of extra frames; the frames of each of these parts; times of extra frames."""
        embed_patches = linear.Dense(self.width, dtype=self.dtype, name="patch_embed")
        patches = embeddings.patchify(x, self.patch_size)
        tokens = embed_patches(embeddings.to_tokens(patches))
        for channels in embedders.embed(self, "channels", cond, x):
            tokens = tokens if channels is None else tokens + channels
        parts, times = [tokens], []
        for frames, frame_times in embedders.embed(self, "frames", cond, x, embed_patches):
            if frame_times is not None:
                parts, times = [*parts, frames], [*times, frame_times]
        counts = (patches.shape[1], *(a.shape[1] for a in times))
        tokens = contexts.join(*parts)
        if self.has_absolute_positions:
            places = self._embed_places(counts, *patches.shape[2:4])
            tokens = tokens.reshape(x.shape[0], -1, *places.shape)
            tokens = (tokens + jnp.broadcast_to(places[None, None], tokens.shape)).reshape(x.shape[0], -1, self.width)
        tokens = constrain(tokens, "batch", "tokens", "width")
        return tokens, counts, jnp.concatenate(times, axis=1) if times else None

    def _embed_places(self, counts: tuple[int, ...], height: int, width: int) -> Float[Array, "n d"]:
        """Where in its frame each token lies: of one frame, or of all tokens where they are cut."""
        features = embeddings.grid_features(height, width).reshape(height * width, -1)
        if contexts.size() > 1:
            features = features[contexts.slots(*(count * height * width for count in counts)) % len(features)]
        zeros = nn.initializers.zeros
        embed = linear.Dense(self.width, False, zeros, dtype=self.dtype, name="patch_embed_position")
        return embed(constrain(jnp.asarray(features), "tokens", None))

    def _lay_out(
        self, counts: tuple[int, ...], lengths: tuple[int, ...], grid: tuple[int, ...], batch_size: int
    ) -> tuple[rope.Rotation, Bool[Array, "b n"] | None]:
        """The rotation of the tokens as they lie, and which places hold one; None: all."""
        positions = np.concatenate([np.arange(counts[0]), -1 - np.arange(sum(counts[1:]))])
        slots = contexts.slots(*lengths) if contexts.size() > 1 else None
        head_dim = self.width // self.num_heads
        rotation = rope.grid_rotation(positions, grid[1], grid[2], head_dim, self.rope_theta, slots)
        if slots is None or slots.min() == 0:
            return rotation, None
        return rotation, jnp.broadcast_to(jnp.asarray(slots >= 0)[None], (batch_size, len(slots)))

    def _embed_times(
        self, t: Times, extra: Float[Array, "b g"] | None, cond: Conditioning, num_frames: int
    ) -> Float[Array, "b m d"]:
        """What modulates every layer, in float32: one row per sample, or one per frame with extra frames last."""
        rows = t[:, None] if t.ndim == 1 else t[:, :: self.patch_size[0]]
        if extra is not None:
            rows = jnp.concatenate([jnp.broadcast_to(rows, (rows.shape[0], num_frames)), extra], axis=1)
        e = embedders.embed_scalar(self, "time_embed", rows, nn.initializers.normal(0.02))
        for vector in embedders.embed(self, "vector", cond, rows):
            e = e + jnp.broadcast_to(vector, e.shape)
        return constrain(e, "batch", None, "width")

    def _predict(
        self,
        tokens: Float[Array, "b n d"],
        e: Float[Array, "b m d"],
        grid: tuple[int, ...],
        lengths: tuple[int, ...],
        frames: modulation.Membership,
    ) -> Float[Array, "b f h w o"]:
        """The head: modulated norm and a linear layer, in float32; extra frames are dropped."""
        f, h, w = grid
        if contexts.size() == 1:  # elsewhere afterwards: patches are smaller than tokens, which stay where they are
            tokens, e = tokens[:, : f * h * w], e if e.shape[1] == 1 else e[:, :f]
        table = self.param("head_modulation", _table_init(self.gate_init), (2, self.width), jnp.float32)
        shift, scale = (e + jnp.broadcast_to(row, e.shape) for row in table)
        features = math.prod(self.patch_size) * (self.out_channels or self.in_channels)
        head = linear.Dense(features, kernel_init=nn.initializers.zeros, name="head")
        patches = head(modulation.modulate(tokens.astype(jnp.float32), shift, scale, self.eps, frames))
        patches = contexts.part(patches, lengths, 0)
        return embeddings.unpatchify(patches.reshape(tokens.shape[0], f, h, w, features), self.patch_size)


def _table_init(gate_init: GateInit) -> nn.initializers.Initializer:
    """Zeros, or Wan's normal / sqrt(width)."""

    def random(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        return jax.random.normal(key, shape, dtype) * shape[-1] ** -0.5

    return nn.initializers.zeros if gate_init == "zero" else random


def _join_text(tokens: Float[Array, "b n d"], context: Context) -> tuple[Float[Array, "b m d"], Context]:
    """Text beside the tokens, at no place of the grid, and what the blocks read beside them."""
    assert context.text is not None
    if context.shared.shape[1] > 1:
        raise ValueError(
            "text tokens have no frame whose time they share: use text_attention='cross' with times per frame"
        )
    text = contexts.cut(context.text.astype(tokens.dtype))
    cos, sin = context.rotation
    still = jnp.zeros((text.shape[1], cos.shape[1]))
    rotation = rope.Rotation(contexts.join(cos, still + 1, axis=0), contexts.join(sin, still, axis=0))
    if contexts.size() == 1 and (context.mask is None or context.mask.ndim == 1):
        real = None if context.mask is None else tokens.shape[1] + context.mask
    else:
        real = jnp.ones(tokens.shape[:2], bool) if context.real is None else context.real
        is_real = attention.as_rows(context.mask, context.text.shape[1])
        is_real = jnp.ones(context.text.shape[:2], bool) if is_real is None else is_real
        real = contexts.join(real, contexts.fill(is_real))
    return contexts.join(tokens, text), Context(context.shared, None, None, rotation, real)
