"""Guidance: denoisers that look at what the condition changes, and do more of it.

    classifier_free         away from the answer to no condition, or to a negative prompt (`negative`)
    chained, composed       several conditions, each with a scale of its own
    autoguidance            away from a weaker network
    rescaled                classifier-free, brought back to the spread of the conditional answer
    adaptive_projected      classifier-free, with the part that oversaturates damped
    zero_star, zero_init    classifier-free for flow models; no motion in the first moments

Each maps a denoiser to a denoiser and declares what it costs. A scale given as the Python number 1 is the denoiser
itself; a traced scale, scalar or one per sample, never recompiles. Rules between two answers take an `interval` of
times, outside which only the conditional answer is computed and paid for.
"""

from nova_jax.diffusion.guidance.auto import autoguidance
from nova_jax.diffusion.guidance.linear import chained, classifier_free, composed, negative
from nova_jax.diffusion.guidance.projected import adaptive_projected
from nova_jax.diffusion.guidance.rescale import rescaled
from nova_jax.diffusion.guidance.zero import zero_init, zero_star

__all__ = [
    "adaptive_projected",
    "autoguidance",
    "chained",
    "classifier_free",
    "composed",
    "negative",
    "rescaled",
    "zero_init",
    "zero_star",
]
