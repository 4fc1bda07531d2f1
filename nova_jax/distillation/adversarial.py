"""Losses of a generator and a discriminator whose logits D are positive for real.

    generator       L_G  = E softplus(-D(fake))                                   (1)  non-saturating
    discriminator   L_D  = E softplus(-D(real)) + E softplus(D(fake))             (2)
    penalty         L_R1 = E |D(x) - D(x + sigma eps)|^2,   eps ~ N(0, I)         (3)  x real

softplus(-D) = -log sigmoid(D), so (2) is the cross-entropy of real against fake. Divided by sigma^2, (3) tends to
E |grad_x D|^2, the penalty R1 (Mescheder et al. 2018, arXiv 1801.04406), as sigma tends to 0; it needs no
second derivative, which flash attention does not have. Means run over samples and, where D has a logit per token, over
tokens.

Goodfellow et al. 2014, arXiv 1406.2661 (1, 2); Yin et al. 2024, DMD2, arXiv 2405.14867, section 4.3 (with D on hidden
tokens of a denoiser); Lin et al. 2025, arXiv 2501.08316 (3).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray


def generator_loss(fake: Float[Array, "*fake"]) -> Float[Array, ""]:
    """Equation 1, from the logits of generated samples; in float32."""
    return jnp.mean(jax.nn.softplus(-fake.astype(jnp.float32)))


def discriminator_loss(real: Float[Array, "*real"], fake: Float[Array, "*fake"]) -> Float[Array, ""]:
    """Equation 2, from the logits of real and of generated samples; in float32."""
    return jnp.mean(jax.nn.softplus(-real.astype(jnp.float32))) + jnp.mean(jax.nn.softplus(fake.astype(jnp.float32)))


def approximate_r1(
    discriminate: Callable[[Array], Array],
    x: Float[Array, "b *dims"],
    logits: Float[Array, "b *n"],
    *,
    key: PRNGKeyArray,
    sigma: float,
) -> Float[Array, ""]:
    """Equation 3, in float32; costs one call of the discriminator.

    Args:
        discriminate: maps x to logits.
        x: real samples, as the discriminator is given them.
        logits: `discriminate(x)`, which the loss has computed already.
        key: of the noise.
        sigma: standard deviation of the noise, in units of x.
    """
    noise = jax.random.normal(key, x.shape, x.dtype)
    change = discriminate(x + sigma * noise).astype(jnp.float32) - logits.astype(jnp.float32)
    return jnp.mean(jnp.square(change))
