"""The autoencoders of Wan 2.1 and 2.2, under the names of diffusers (class AutoencoderKLWan).

The two lay out levels differently: Wan 2.1 numbers the encoder's blocks and downsamplers in one list and puts each
upsampler in a list of its own; Wan 2.2 (`is_residual`) nests both in levels.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from nova_jax.models.vae import VAE
from nova_jax.weights import tables
from nova_jax.weights.tables import Entry, WeightsError

CLASS_NAME = "AutoencoderKLWan"

# What diffusers (0.42.1) assumes for keys that an older config lacks.
_DEFAULTS: dict[str, Any] = {
    "decoder_base_dim": None,
    "attn_scales": [],
    "dropout": 0.0,
    "is_residual": False,
    "in_channels": 3,
    "out_channels": 3,
    "patch_size": None,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
    "clip_output": False,  # saved with Wan 2.2; diffusers clips whatever it says, as `VAE.decode` does
}
_REQUIRED = ("base_dim", "z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "latents_mean", "latents_std")

_LEAVES = {"kernel": "weight", "bias": "bias", "scale": "gamma"}
_RESAMPLERS = {
    (False, "upsample"): "upsamplers.0",
    (True, "upsample"): "upsampler",
    (True, "downsample"): "downsampler",
}
_NAMES = (  # applied in turn to the path of a layer whose level is already translated
    (r"^encoder/quant$", "quant_conv"),
    (r"^decoder/post_quant$", "post_quant_conv"),
    (r"/middle/block_(\d)", r"/mid_block/resnets/\1"),
    (r"/middle/attention/norm$", "/mid_block/attentions/0/norm"),
    (r"/middle/attention/out$", "/mid_block/attentions/0/proj"),
    (r"/middle/attention/(query|key|value)$", "/mid_block/attentions/0/to_qkv"),
    (r"/shortcut$", "/conv_shortcut"),
    (r"/conv$", "/resample/1"),
    (r"/(conv|norm)_(\d)$", r"/\1\2"),
)


def module_from_config(config: Mapping[str, Any]) -> VAE:
    """The autoencoder that a diffusers config describes.

    Raises:
        WeightsError: a key is missing or unknown, or its value asks for something that `VAE` does not have.
    """
    given = {key: value for key, value in config.items() if not key.startswith("_")}
    if missing := sorted(set(_REQUIRED) - set(given)):
        raise WeightsError(f"config.json of {CLASS_NAME} has no {', '.join(missing)}")
    if unknown := sorted(set(given) - set(_REQUIRED) - set(_DEFAULTS)):
        raise WeightsError(f"config.json of {CLASS_NAME} has unknown keys: {', '.join(unknown)}")
    config = {**_DEFAULTS, **given}
    try:
        vae = VAE(
            latent_channels=config["z_dim"],
            width=config["base_dim"],
            decoder_width=config["decoder_base_dim"],
            width_multipliers=tuple(config["dim_mult"]),
            halves_time=tuple(config["temperal_downsample"]),
            num_blocks=config["num_res_blocks"],
            patch_size=config["patch_size"] or 1,
            has_shortcuts=config["is_residual"],
            latents_mean=tuple(map(float, config["latents_mean"])),
            latents_std=tuple(map(float, config["latents_std"])),
        )
    except ValueError as error:
        raise WeightsError(f"config.json of {CLASS_NAME}: {error}") from error
    channels, (time, space, _) = 3 * vae.patch_size**2, vae.compression
    supported = {
        "attn_scales": [],
        "dropout": 0.0,
        "in_channels": channels,
        "out_channels": channels,
        "scale_factor_temporal": time,
        "scale_factor_spatial": space,
    }
    for key, value in supported.items():
        if config[key] != value:
            raise WeightsError(
                f"config.json of {CLASS_NAME}: {key} is {config[key]!r}, the only supported value is {value!r}"
            )
    return vae


def entries(module: VAE) -> list[Entry]:
    """The table from diffusers' names to ours: one entry for every parameter the module has."""
    paths = tables.flatten(jax.eval_shape(module.init, jax.random.key(0)))
    return [_entry(path, module) for path in paths]


def _entry(path: str, module: VAE) -> Entry:
    owner, leaf = path.rsplit("/", 1)
    part = slice(None)
    if found := re.search(r"/attention/(query|key|value)$", owner):
        width = module.width if owner.startswith("encoder") else module.decoder_width or module.width
        width *= module.width_multipliers[-1]
        start = ("query", "key", "value").index(found[1]) * width
        part = slice(start, start + width)
    transform = {"kernel": _kernel, "bias": tables.keep, "scale": tables.squeeze}[leaf]
    name = f"{_module_name(owner, module)}.{_LEAVES[leaf]}"
    return Entry(name, path, lambda tensor: transform(tensor[part]))


def _kernel(tensor: np.ndarray) -> np.ndarray:
    """(out, in, *window) -> (time, height, width, in, out); a 2-D kernel gets one tap in time."""
    kernel = tables.convolution(tensor)
    return kernel if kernel.ndim == 5 else kernel[None]


def _module_name(path: str, module: VAE) -> str:
    """The layer at one of our paths, as diffusers calls it."""

    def level(found: re.Match[str]) -> str:
        i, block = int(found[2]), found[4]
        if found[1] == "decoder" or module.has_shortcuts:
            stack = "down_blocks" if found[1] == "encoder" else "up_blocks"
            part = f"resnets.{block}" if block else _RESAMPLERS[module.has_shortcuts, found[3]]
            return f"{found[1]}.{stack}.{i}.{part}"
        index = int(block) if block else module.num_blocks
        return f"encoder.down_blocks.{i * (module.num_blocks + 1) + index}"

    path = re.sub(r"^(encoder|decoder)/level_(\d+)/(block_(\d+)|downsample|upsample)", level, path)
    for ours, theirs in _NAMES:
        path = re.sub(ours, theirs, path)
    return path.replace("/", ".")
