"""One block, many layers: the only place where depth is scanned and rematerialised.

The parameters of all layers are stacked along a leading axis however the loop over depth is compiled, so checkpoints
do not depend on it. What autodiff keeps of a block for the backward pass is a named policy;
`jax.ad_checkpoint.checkpoint_name` names values where they are made. Bytes per token and layer at width d, in bfloat16
with an MLP of 4 d:

                    keeps                                  self-attention + MLP    + cross-attention
    none            everything, float32 and scores too                             220 d (at 64 tokens)
    names_most      names, and what attention multiplies   26 d                    34 d
    names           every matrix product                   22 d                    28 d
    names_light     all but the first of the MLP           14 d                    20 d
    attention_only  the outputs of attention                4 d                     6 d
    full            nothing but the block's input           2 d                     2 d

`names` repeats elementwise work and the scores of attention, `names_most` not the norms and rotations of queries and
keys; `names_light` a third of the block's linear layers as well; `attention_only` all of them. Those with `names` also
keep a few numbers a token, the means and factors of norms. Flash attention (cuDNN) also keeps its log-sum-exp with them
and with `attention_only`, and never runs forward twice.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp

Remat = Literal["none", "names_most", "names", "names_light", "attention_only", "full"]

SAVED_NAMES = {
    "names_most": ("qkv", "qk", "attn_o", "proj", "fc1", "fc2", "norm"),
    "names": ("qkv", "attn_o", "proj", "fc1", "fc2", "norm"),
    "names_light": ("qkv", "attn_o", "proj", "fc2", "norm"),
    "attention_only": ("attn_o",),
    "full": (),
}
# A name outside a `custom_vjp` does not keep what its backward pass reads, so the flash kernel is known by its
# primitive.
FLASH_FORWARD = "dot_product_attention_fwd_wrapper"


def scan_blocks(
    block: type[nn.Module], depth: int, *, remat: Remat = "none", unroll: int = 1, in_axes: Any = nn.broadcast
) -> Callable[..., Any]:
    """The module class that applies `depth` copies of `block` in turn.

    Use it as `scan_blocks(Block, 12)(name="blocks", **fields_of_a_block)(x, context)`, which returns `(x, None)`.

    Args:
        block: its `__call__(x, context)` returns `(x, None)`; `context` is any pytree, the same for every layer.
        depth: number of layers.
        remat: what the backward pass finds stored.
        unroll: layers per turn of the compiled loop; `depth` leaves no loop.
        in_axes: for each argument after x the axis that holds one part for each layer, or `nn.broadcast`.

    Raises:
        ValueError: an unknown policy.
    """
    if remat not in get_args(Remat):
        raise ValueError(f"unknown remat policy {remat!r}: use one of {', '.join(get_args(Remat))}")
    if remat != "none":
        # Inside a loop XLA cannot merge the recomputation with the forward pass, so it need not be prevented from it.
        block = nn.remat(block, policy=_policy(SAVED_NAMES[remat]), prevent_cse=unroll >= depth)
    return nn.scan(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=depth,
        unroll=unroll,
    )


def cast_once(layers: Any, dtype: Any) -> Any:
    """The layers of `scan_blocks` with the weights of their linear layers in the dtype that they compute in.

    Cast all at once, before the loop: in the loop a layer would cast its own, forwards and again backwards.
    """
    return nn.map_variables(layers, "params", functools.partial(_cast, dtype=dtype))


def _cast(params: Any, dtype: Any) -> Any:
    if not isinstance(params, Mapping):
        return params
    cast = functools.partial(jnp.asarray, dtype=dtype) if "kernel" in params else functools.partial(_cast, dtype=dtype)
    return {name: cast(value) for name, value in params.items()}


def _policy(names: tuple[str, ...]) -> Callable[..., Any]:
    by_name = jax.checkpoint_policies.save_only_these_names(*names)
    if "attn_o" not in names:
        return by_name
    return lambda primitive, *args, **params: primitive.name == FLASH_FORWARD or by_name(primitive, *args, **params)
