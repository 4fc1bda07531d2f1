"""Hidden tokens of a denoiser after its first k layers: the features that a discriminator reads.

    tokens = block_k(.. block_1(embed(x))),  layers k + 1 .. are neither run nor read

The blocks are stacked along a leading axis, so the first k layers are a slice of the parameters at hand and nothing is
stored twice. `functools.partial(hidden_tokens, network, depth=k)` is called like a network: `(params, x, t, cond)`.

Adversarial distillation takes these features from the denoiser that learns the student's distribution (Yin et al. 2024,
DMD2, arXiv:2405.14867, section 4.3) or from the frozen teacher (Sauer et al. 2024, LADD, arXiv:2403.12015).
"""

from typing import TypeVar

import jax
from jaxtyping import Array, Float

from nova_jax.models.dit import DiT
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.types import Conditioning, Latents, Params, Times

Network = TypeVar("Network", bound=DiT | TextToLatent)


def hidden_tokens(
    network: DiT | TextToLatent, params: Params, x: Latents, t: Times, cond: Conditioning | None = None, *, depth: int
) -> Float[Array, "b n d"]:
    """The tokens after the first `depth` layers, frame by frame and row by row, those of extra frames last.

    Differentiable in `params` and `x`. Under `jit` the slice costs a copy of these layers' parameters in every call;
    where that is too much, slice once with `first_layers` and call this on the result.

    Raises:
        ValueError: the network does not have `depth` layers, or `cond` holds what it has no input for.
    """
    network, params = first_layers(network, params, depth)
    return network.apply({"params": params}, x, t, cond, method="hidden_tokens")  # pyright: ignore[reportReturnType]


def first_layers(network: Network, params: Params, depth: int) -> tuple[Network, Params]:
    """The network cut after `depth` layers, and its parameters: those it had, without the blocks of later layers.

    Raises:
        ValueError: the network does not have `depth` layers.
    """
    if isinstance(network, TextToLatent):
        dit, dit_params = first_layers(network.dit, params["dit"], depth)
        return network.clone(dit=dit), {**params, "dit": dit_params}
    if not 1 <= depth <= network.depth:
        raise ValueError(f"depth={depth}: this network has layers 1 to {network.depth}")
    blocks = jax.tree.map(lambda stacked: stacked[:depth], params["blocks"])
    return network.clone(depth=depth), {**params, "blocks": blocks}
