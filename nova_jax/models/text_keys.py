"""The keys and values of the text, made once for all evaluations of a sample.

    keys_i, values_i = key_norm_i(y K_i), y V_i        for every layer i;   y = text_embed(states), palette, task

What cross-attention reads of its context depends on neither x nor t. A sampler makes it before its first step, so that
every evaluation is spared 4 l d^2 FLOPs in each layer, for l text tokens at width d, and the embedding of the text.
"""

from typing import Any

import flax.linen as nn
from jaxtyping import Array, Float

from nova_jax.layers import attention, stack
from nova_jax.models import embedders
from nova_jax.models.dit import DiT
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.types import Conditioning, Params, TextKeys


def with_text_keys(network: Any, params: Params, cond: Conditioning) -> Conditioning:
    """The conditions with `text_keys` in place of the text and of all that joins as tokens beside it.

    Unchanged where there is no encoded text, where it takes part in the self-attention (`text_attention="joint"`), and
    for a network of another kind.
    """
    if isinstance(network, TextToLatent):
        return with_text_keys(network.dit, params["dit"], cond)
    if not isinstance(network, DiT) or network.text_attention == "joint" or cond.text is None:
        return cond
    names = [name for c in embedders.read_by(network, "tokens") for name in (*c.fields, *c.details)]
    keys: Any = _TextKeys(network).apply({"params": params}, cond)
    return cond.put(**{name: None for name in names if cond.get(name) is not None})._replace(text_keys=keys)


class _TextKeys(nn.Module):
    """Reads parameters of the network, under the names that they have there."""

    network: DiT

    @nn.compact
    def __call__(self, cond: Conditioning) -> TextKeys:
        assert cond.text is not None
        text, mask = embedders.join_tokens(self.network, cond, cond.text.shape[0])
        fields = {name: getattr(self.network, name) for name in ("num_heads", "qk_norm", "eps", "dtype")}
        _, (keys, values) = stack.scan_blocks(_Layer, self.network.depth)(name="blocks", **fields)((), text)
        return TextKeys(keys.swapaxes(0, 1), values.swapaxes(0, 1), mask)


class _Layer(nn.Module):
    """What one `Block` of the network reads of the text."""

    num_heads: int
    qk_norm: attention.QKNorm
    eps: float
    dtype: Any

    @nn.compact
    def __call__(
        self, nothing: tuple[()], text: Float[Array, "b l d"]
    ) -> tuple[tuple[()], tuple[attention.Keys, attention.Keys]]:
        fields = {"qk_norm": self.qk_norm, "eps": self.eps, "dtype": self.dtype}
        return nothing, attention.KeysAndValues(self.num_heads, name="cross_attention", **fields)(text)
