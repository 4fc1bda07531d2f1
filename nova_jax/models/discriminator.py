"""A discriminator's head: real or fake, judged at every token of a denoiser's hidden layer.

    h        = W_down gelu(W_up LN(tokens))
    logit_n  = (w + V(pooled) / sqrt(d)) . h_n + b          V: two linear layers, only with pooled_dim

One logit per token, since an image is fake where it is fake, and no size of image is special: the heads of LADD
(Sauer et al. 2024, arXiv:2403.12015), with a network per token in place of their convolutions, because tokens after
layers of attention have seen their neighbours. Where one logit per sample is wanted, as DMD2 has (Yin et al. 2024,
arXiv:2405.14867, section 4.3), take the mean over tokens. The text enters as a projection (Miyato & Koyama 2018,
arXiv:1802.05637; over sqrt(d) as in StyleGAN-T, Sauer et al. 2023, arXiv:2301.09515). LN has no gain or offset.

Time needs no input: the tokens of a denoiser know it.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from nova_jax.layers import embeddings, linear, norms
from nova_jax.models import dit


class Discriminator(nn.Module):
    """Tokens (from `features.hidden_tokens`) to logits, positive for real.

    It starts undecided, with logits that are all 0: its first gradient to the generator is 0 instead of noise.
    """

    mlp_dim: int
    pooled_dim: int = 0  # width of the text vector; 0: judges without text
    eps: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"], pooled: Float[Array, "b p"] | None = None) -> Float[Array, "b n"]:
        """Logits in float32; `pooled` None is a vector of zeros.

        Raises:
            ValueError: `pooled` has another width than `pooled_dim`.
        """
        if pooled is not None and pooled.shape[1] != self.pooled_dim:
            raise ValueError(f"pooled has width {pooled.shape[1]}; this discriminator has pooled_dim={self.pooled_dim}")
        b, _, d = tokens.shape
        normed = norms.standardize(tokens, self.eps)
        h = dit.MLP(self.mlp_dim, dtype=self.dtype, name="mlp")(normed).astype(jnp.float32)
        logits = linear.Dense(1, kernel_init=nn.initializers.zeros, name="head")(h)[:, :, 0]
        if not self.pooled_dim:
            return logits
        pooled = jnp.zeros((b, self.pooled_dim)) if pooled is None else pooled
        direction = embeddings.Embedder(d, out_init=nn.initializers.zeros, name="pooled_embed")(pooled)
        return logits + jnp.einsum("bnd,bd->bn", h, direction) * d**-0.5
