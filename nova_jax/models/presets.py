"""Models by name, with the published sizes.

S/2, B/2, L/2 and XL/2 have the widths and depths of DiT (Peebles & Xie 2022, arXiv:2212.09748, table 1), with heads of
128 from width 768 on. wan-1.3B, wan-5B and wan-14B are Wan 2.1 and 2.2 (Wan Team 2025, arXiv:2503.20314). nano trains
on a laptop.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from nova_jax.models import vae as vaes
from nova_jax.models.dit import DiT
from nova_jax.models.text import t5

T = TypeVar("T")

WAN: dict[str, Any] = {
    "text_dim": 4096,
    "qk_norm": "across_heads",
    "gate_init": "random",
    "masks_text": False,
}
SCRATCH: dict[str, Any] = {"in_channels": 16, "text_dim": 256}

DIT: dict[str, dict[str, Any]] = {
    "nano": {**SCRATCH, "width": 64, "depth": 4, "num_heads": 2},
    "S/2": {**SCRATCH, "width": 384, "depth": 12, "num_heads": 6},
    "B/2": {**SCRATCH, "width": 768, "depth": 12, "num_heads": 6},
    "L/2": {**SCRATCH, "width": 1024, "depth": 24, "num_heads": 8},
    "XL/2": {**SCRATCH, "width": 1152, "depth": 28, "num_heads": 9},
    "wan-1.3B": {**WAN, "in_channels": 16, "width": 1536, "depth": 30, "num_heads": 12, "mlp_dim": 8960},
    "wan-5B": {**WAN, "in_channels": 48, "width": 3072, "depth": 30, "num_heads": 24, "mlp_dim": 14336},
    "wan-14B": {**WAN, "in_channels": 16, "width": 5120, "depth": 40, "num_heads": 40, "mlp_dim": 13824},
}
VAE: dict[str, Callable[..., vaes.VAE]] = {
    "tiny": vaes.tiny,
    "small-image": vaes.small_image,
    "small-video": vaes.small_video,
    "tiny-video": vaes.tiny_video,
    "wan2.1": vaes.wan21,
    "wan2.2": vaes.wan22,
}
TEXT_ENCODER: dict[str, Callable[..., t5.T5Encoder]] = {"t5-v1.1-xxl": t5.t5_v1_1_xxl, "umt5-xxl": t5.umt5_xxl}


def dit(name: str, **fields: Any) -> DiT:
    """A diffusion transformer by name; `fields` replace any of its fields (`in_channels`, `text_dim`, `dtype`, ..).

    Raises:
        ValueError: an unknown name.
    """
    return DiT(**{**_find("dit", DIT, name), **fields})


def vae(name: str, **fields: Any) -> vaes.VAE:
    """An autoencoder by name; `fields` replace any of its fields.

    Raises:
        ValueError: an unknown name.
    """
    return _find("vae", VAE, name)(**fields)


def text_encoder(name: str, **fields: Any) -> t5.T5Encoder:
    """A pretrained text encoder by name; `dtype` may be replaced.

    Raises:
        ValueError: an unknown name.
    """
    return _find("text encoder", TEXT_ENCODER, name)(**fields)


def _find(kind: str, table: Mapping[str, T], name: str) -> T:
    if name not in table:
        raise ValueError(f"unknown {kind} preset {name!r}: use one of {', '.join(table)}")
    return table[name]
