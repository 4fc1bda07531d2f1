"""A denoiser and the text encoder that is trained with it, as one network.

    text, mask = text_encoder(cond.text_ids, cond.text_mask)          prediction = dit(x, t, cond with text and mask)

A denoiser with `pooled_dim` also reads the mean of the states: a second, short way from the words to every layer, as in
SDXL (Podell et al. 2023, arXiv:2307.01952) and SD3 (Esser et al. 2024, arXiv:2403.03206).

Parameters are {"dit": .., "text_encoder": ..}. The text does not depend on x or t: a sampler encodes it once with
`network.apply(variables, cond, method="encode_text")` and takes all its steps with the result.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.models.dit import DiT
from nova_jax.models.text import encoder
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.types import Conditioning, Latents, Times


class TextToLatent(nn.Module):
    """Reads captions as token ids; states that are already encoded go straight to the denoiser."""

    dit: DiT
    text_encoder: TextEncoder

    def __post_init__(self) -> None:
        if self.dit.text_dim != self.text_encoder.width:
            raise ValueError(
                f"dit.text_dim={self.dit.text_dim} must equal text_encoder.width={self.text_encoder.width}: "
                "the denoiser reads the encoder's states"
            )
        if self.dit.pooled_dim not in (0, self.text_encoder.width):
            raise ValueError(
                f"dit.pooled_dim={self.dit.pooled_dim} must be 0 or text_encoder.width={self.text_encoder.width}: "
                "it reads the mean of the encoder's states"
            )
        super().__post_init__()

    def __call__(self, x: Latents, t: Times, cond: Conditioning | None = None) -> Float[Array, "b f h w o"]:
        """Predicts what the denoiser predicts at x_t; see `DiT`."""
        return self.dit(x, t, self.encode_text(self._with_ids(cond or Conditioning(), x.shape[0])))

    def hidden_tokens(self, x: Latents, t: Times, cond: Conditioning | None = None) -> Float[Array, "b n d"]:
        """The tokens that the denoiser's head reads; see `DiT`."""
        return self.dit.hidden_tokens(x, t, self.encode_text(self._with_ids(cond or Conditioning(), x.shape[0])))

    def encode_text(self, cond: Conditioning) -> Conditioning:
        """The conditioning with `text`, `text_mask` and, if the denoiser reads it, `pooled` made from its `text_ids`.

        Unchanged if it holds `text` already.

        Without `text_mask`, positions whose ids are not 0 are real.
        """
        if cond.text is not None or cond.text_ids is None:
            return cond
        mask = encoder.real_positions(cond.text_ids) if cond.text_mask is None else cond.text_mask
        encode: Any = self.text_encoder
        text, text_mask = encode(cond.text_ids, mask)
        cond = cond._replace(text=text, text_mask=text_mask)
        if not self.dit.pooled_dim:
            return cond
        return cond._replace(pooled=text.sum(axis=1) / text_mask.sum(axis=1, keepdims=True))  # masked states are zero

    @nn.nowrap
    def flops(
        self, latent_shape: tuple[int, int, int], text_length: int, extra_frames: int = 0, extra_text: int = 0
    ) -> int:
        """Forward FLOPs of one sample of latents (f, h, w) and a text of `text_length` positions; see `DiT.flops`."""
        length = text_length or self.text_encoder.null(1).mask.shape[1]
        states = self.text_encoder.num_states(length)
        return self.text_encoder.flops(length) + self.dit.flops(latent_shape, states, extra_frames, extra_text)

    def _with_ids(self, cond: Conditioning, batch_size: int) -> Conditioning:
        """Fills in the null caption where there is no text."""
        if cond.text is not None or cond.text_ids is not None or cond.text_keys is not None:
            return cond
        ids, mask = map(jnp.asarray, self.text_encoder.null(batch_size))
        return cond._replace(text_ids=ids, text_mask=mask)
