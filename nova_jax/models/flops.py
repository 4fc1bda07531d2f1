"""Closed-form FLOPs of a diffusion transformer, and the peaks to hold them against.

A multiply-add is two FLOPs and only matrix products count, as is usual for model FLOPs utilisation (MFU). Forward, one
sample, with n tokens, l text tokens of width c, width d, MLP width f, patches of p_in and p_out numbers, r rows of
modulation:

    block          8 n d^2       query, key, value, out        4 n^2 d   scores, and their product with the values
                   4 n d f       MLP
    to the text    4 (n + l) d^2   query, out; key, value      4 n l d   scores, and their product with the values
    modulation     12 r d^2      once (adaLN-single), or in every block (adaLN), then also 4 r d^2 in the head
    embeddings     2 n d (p_in + p_out)     2 r (freq d + d^2)   time     2 l (c d + d^2)   text

What other conditions add is stated beside their embedders (`models.embedders`).

A training step costs three forward passes: the backward pass has two products for each one. Recomputation does not
count, so utilisation compares across remat policies.
"""

import dataclasses
from typing import Literal

# Dense bfloat16 FLOP/s of one jax device, by the start of its `device_kind`; the longest match counts.
PEAK_FLOPS: dict[str, float] = {
    "NVIDIA A100": 312e12,  # A100 data sheet
    "NVIDIA L4": 121e12,  # L4 data sheet, half of the value with sparsity
    "NVIDIA L40S": 362e12,  # L40S data sheet
    "NVIDIA H100": 989e12,  # H100 data sheet, SXM
    "NVIDIA H100 PCIe": 756e12,  # H100 data sheet
    "NVIDIA H200": 989e12,  # H200 data sheet
    "NVIDIA B200": 2250e12,  # HGX B200 data sheet
    "NVIDIA GB200": 2500e12,  # GB200 NVL72 data sheet
    "Tesla T4": 65e12,  # T4 data sheet; float16, the chip has no bfloat16
    "TPU v2": 22.5e12,  # a device is one of two cores; cloud.google.com/tpu/docs/v2
    "TPU v3": 61.5e12,  # a device is one of two cores; cloud.google.com/tpu/docs/v3
    "TPU v4": 275e12,  # cloud.google.com/tpu/docs/v4
    "TPU v5 lite": 197e12,  # v5e; cloud.google.com/tpu/docs/v5e
    "TPU v5e": 197e12,  # cloud.google.com/tpu/docs/v5e
    "TPU v5": 459e12,  # v5p; cloud.google.com/tpu/docs/v5p
    "TPU v6 lite": 918e12,  # v6e; cloud.google.com/tpu/docs/v6e
    "TPU v6e": 918e12,  # cloud.google.com/tpu/docs/v6e
    "TPU7x": 1153.5e12,  # a device is one of two chiplets; cloud.google.com/tpu/docs/tpu7x
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of one device of this `jax.Device.device_kind`; None if unknown (a CPU, say)."""
    matches = [kind for kind in PEAK_FLOPS if device_kind.startswith(kind)]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def train_step_flops(forward_flops: float, batch_size: int) -> float:
    """Model FLOPs of a training step, given those of one sample's forward pass."""
    return 3 * forward_flops * batch_size


def two_layers(features: int, width: int, rows: int = 1) -> int:
    """Forward FLOPs of an embedding by two linear layers, of so many rows."""
    return 2 * rows * (features * width + width**2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transformer:
    """The sizes that decide the cost of a diffusion transformer."""

    width: int
    depth: int
    mlp_dim: int
    patch_in: int  # numbers in a patch of the input
    patch_out: int
    text_dim: int = 0  # 0: no cross-attention
    freq_dim: int = 256
    modulation: Literal["single", "per_block"] = "single"
    text_attention: Literal["cross", "joint"] = "cross"  # joint: text is among the tokens of a block

    def block(self, tokens: int, text_tokens: int = 0) -> int:
        """Forward FLOPs of the attention and MLP of one block."""
        is_joint = self.text_attention == "joint"
        n, l, d = tokens + text_tokens * is_joint, text_tokens, self.width
        flops = 8 * n * d**2 + 4 * n**2 * d + 4 * n * d * self.mlp_dim
        return flops + 4 * (n + l) * d**2 + 4 * n * l * d if self.text_dim and not is_joint else flops

    def forward(self, tokens: int, text_tokens: int = 0, rows: int = 1) -> int:
        """Forward FLOPs of one sample with `rows` rows of modulation: 1, or one per frame."""
        d = self.width
        modulation = rows * (12 * d**2 if self.modulation == "single" else (12 * self.depth + 4) * d**2)
        patches = 2 * tokens * d * (self.patch_in + self.patch_out)
        text = two_layers(self.text_dim, d, text_tokens) if self.text_dim else 0
        time = two_layers(self.freq_dim, d, rows)
        return self.depth * self.block(tokens, text_tokens) + modulation + patches + time + text
