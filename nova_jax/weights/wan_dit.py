"""Wan 2.1 and 2.2 denoisers, under the names of diffusers and under those of the original release.

Both releases hold the same tensors. The affine norm before cross-attention is `norm2` in diffusers and `norm3` in the
original, where `norm2` is another one. Image-to-video models read noisy latents, a mask and clean latents, joined on
channels, through one patch embedding; here what follows the noisy latents is `cond.aligned`, with its own kernel.
Models with CLIP image tokens (Wan 2.1 image-to-video) have parts that DiT lacks and are refused.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from nova_jax.models.dit import DiT
from nova_jax.weights.tables import Entry, Transform, WeightsError, keep, linear, numbered

# Our path -> their name: of modules with kernel and bias, and of single arrays.
DIFFUSERS = {
    "time_embed/in": "condition_embedder.time_embedder.linear_1",
    "time_embed/out": "condition_embedder.time_embedder.linear_2",
    "time_modulation": "condition_embedder.time_proj",
    "text_embed/in": "condition_embedder.text_embedder.linear_1",
    "text_embed/out": "condition_embedder.text_embedder.linear_2",
    "head": "proj_out",
    "head_modulation": "scale_shift_table",
    "blocks/modulation": "blocks.{}.scale_shift_table",
    "blocks/self_attention": "blocks.{}.attn1",
    "blocks/cross_attention": "blocks.{}.attn2",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "blocks/cross_norm": "blocks.{}.norm2",
    "blocks/mlp/up": "blocks.{}.ffn.net.0.proj",
    "blocks/mlp/down": "blocks.{}.ffn.net.2",
}
ORIGINAL = {
    "time_embed/in": "time_embedding.0",
    "time_embed/out": "time_embedding.2",
    "time_modulation": "time_projection.1",
    "text_embed/in": "text_embedding.0",
    "text_embed/out": "text_embedding.2",
    "head": "head.head",
    "head_modulation": "head.modulation",
    "blocks/modulation": "blocks.{}.modulation",
    "blocks/self_attention": "blocks.{}.self_attn",
    "blocks/cross_attention": "blocks.{}.cross_attn",
    "query": "q",
    "key": "k",
    "value": "v",
    "out": "o",
    "blocks/cross_norm": "blocks.{}.norm3",
    "blocks/mlp/up": "blocks.{}.ffn.0",
    "blocks/mlp/down": "blocks.{}.ffn.2",
}
_LINEARS = (
    *("time_embed/in", "time_embed/out", "time_modulation", "text_embed/in", "text_embed/out", "head"),
    *("blocks/mlp/up", "blocks/mlp/down"),
)
_ATTENTIONS = ("blocks/self_attention", "blocks/cross_attention")

# Keys of a diffusers config that do not change the function, and those of which one value is implemented.
_INERT = ("rope_max_seq_len",)
_FIXED = {
    "qk_norm": "rms_norm_across_heads",
    "added_kv_proj_dim": None,
    "image_dim": None,
    "pos_embed_seq_len": None,
}
# The original release leaves fields at their defaults out of its config.
_ORIGINAL_DEFAULTS = {"patch_size": (1, 2, 2), "text_dim": 4096, "cross_attn_norm": True}
_ORIGINAL_INERT = ("text_len", "model_type")
_ORIGINAL_FIXED = {"qk_norm": True, "window_size": [-1, -1]}


def module_from_config(config: Mapping[str, Any]) -> DiT:
    """The DiT that a diffusers `WanTransformer3DModel` config describes.

    Raises:
        WeightsError: a key is missing, unknown, or asks for a part that DiT lacks.
    """
    fields = _checked(config, _FIXED, _INERT)
    try:
        heads, head_dim = fields.pop("num_attention_heads"), fields.pop("attention_head_dim")
        fields |= {"num_heads": heads, "width": heads * head_dim, "depth": fields.pop("num_layers")}
        return _module(fields)
    except KeyError as error:
        raise WeightsError(f"config.json has no {error}, which WanTransformer3DModel needs") from error


def module_from_original_config(config: Mapping[str, Any]) -> DiT:
    """The DiT that the config of an original `WanModel` describes.

    Raises:
        WeightsError: as `module_from_config`.
    """
    fields = _ORIGINAL_DEFAULTS | _checked(config, _ORIGINAL_FIXED, _ORIGINAL_INERT)
    names = {"dim": "width", "num_layers": "depth", "in_dim": "in_channels", "out_dim": "out_channels"}
    try:
        return _module({names.get(key, key): value for key, value in fields.items()})
    except KeyError as error:
        raise WeightsError(f"config.json has no {error}, which WanModel needs") from error


def entries(module: DiT) -> list[Entry]:
    """The table from diffusers' names to ours."""
    return _entries(DIFFUSERS, module)


def original_entries(module: DiT) -> list[Entry]:
    """The table from the original release's names to ours."""
    return _entries(ORIGINAL, module)


def _checked(config: Mapping[str, Any], fixed: Mapping[str, Any], inert: tuple[str, ...]) -> dict[str, Any]:
    """The keys that describe the module, after making sure that none is beyond what is implemented."""
    for key, value in fixed.items():
        if config.get(key, value) != value:
            raise WeightsError(f"config.json has {key}={config[key]!r}; only {value!r} is implemented")
    return {k: v for k, v in config.items() if k not in fixed and k not in inert and not k.startswith("_")}


def _module(fields: dict[str, Any]) -> DiT:
    noisy, given = fields.pop("out_channels"), fields.pop("in_channels")
    module = DiT(
        width=fields.pop("width"),
        depth=fields.pop("depth"),
        num_heads=fields.pop("num_heads"),
        in_channels=noisy,
        aligned_channels=given - noisy,
        text_dim=fields.pop("text_dim"),
        patch_size=tuple(fields.pop("patch_size")),
        mlp_dim=fields.pop("ffn_dim"),
        freq_dim=fields.pop("freq_dim"),
        cross_norm_affine=fields.pop("cross_attn_norm"),
        eps=fields.pop("eps"),
        qk_norm="across_heads",
        gate_init="random",
        masks_text=False,
    )
    if fields:
        raise WeightsError(f"config.json has keys this version does not know: {', '.join(sorted(fields))}")
    return module


def _entries(names: Mapping[str, str], module: DiT) -> list[Entry]:
    def entry(source: str, target: str, transform: Transform = keep) -> Entry:
        return Entry(numbered(source, module.depth) if "{}" in source else source, target, transform)

    def dense(source: str, target: str) -> list[Entry]:
        return [
            entry(f"{source}.weight", f"{target}/kernel", linear),
            entry(f"{source}.bias", f"{target}/bias"),
        ]

    table = _patch_entries(module)
    for target in _LINEARS:
        table += dense(names[target], target)
    for target in _ATTENTIONS:
        for role in ("query", "key", "value", "out"):
            table += dense(f"{names[target]}.{names[role]}", f"{target}/{role}")
        table.append(entry(f"{names[target]}.norm_q.weight", f"{target}/query_norm/scale"))
        table.append(entry(f"{names[target]}.norm_k.weight", f"{target}/key_norm/scale"))
    if module.cross_norm_affine:
        table.append(entry(f"{names['blocks/cross_norm']}.weight", "blocks/cross_norm/scale"))
        table.append(entry(f"{names['blocks/cross_norm']}.bias", "blocks/cross_norm/bias"))
    for target in ("head_modulation", "blocks/modulation"):
        table.append(entry(names[target], target, _without_batch))
    return table


def _patch_entries(module: DiT) -> list[Entry]:
    """The patch convolution as a matrix; rows are (frame, row, column, channel), as in `embeddings.patchify`."""

    def rows(channels: slice) -> Transform:
        return lambda kernel: np.transpose(kernel[:, channels], (2, 3, 4, 1, 0)).reshape(-1, kernel.shape[0])

    source, split = "patch_embedding.weight", module.in_channels
    table = [
        Entry(source, "patch_embed/kernel", rows(slice(split))),
        Entry("patch_embedding.bias", "patch_embed/bias"),
    ]
    if module.aligned_channels:
        table.append(Entry(source, "patch_embed_aligned/kernel", rows(slice(split, None))))
    return table


def _without_batch(tensor: np.ndarray) -> np.ndarray:
    """(1, rows, width) -> (rows, width)."""
    return tensor.squeeze(0)
