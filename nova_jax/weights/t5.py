"""T5 and umT5 encoders as transformers saves them."""

from collections.abc import Mapping
from typing import Any

from nova_jax.models.text.t5 import T5Encoder
from nova_jax.weights.tables import Entry, Transform, WeightsError, keep, linear, numbered

CLASS_NAMES = ("T5EncoderModel", "T5ForConditionalGeneration", "UMT5EncoderModel", "UMT5ForConditionalGeneration")
UNUSED = ("encoder.embed_tokens.weight", "decoder.*", "lm_head.weight")  # a copy of `shared`, and what an encoder lacks
# The embedding has three names in one model; safetensors' `save_model` keeps the first of the alphabet alone.
TWINS = {"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")}

_BLOCK: tuple[tuple[str, str, Transform], ...] = (
    ("0.SelfAttention.q.weight", "attention/query/kernel", linear),
    ("0.SelfAttention.k.weight", "attention/key/kernel", linear),
    ("0.SelfAttention.v.weight", "attention/value/kernel", linear),
    ("0.SelfAttention.o.weight", "attention/out/kernel", linear),
    ("0.layer_norm.weight", "attention_norm/scale", keep),
    ("1.DenseReluDense.wi_0.weight", "mlp/gate/kernel", linear),
    ("1.DenseReluDense.wi_1.weight", "mlp/up/kernel", linear),
    ("1.DenseReluDense.wo.weight", "mlp/down/kernel", linear),
    ("1.layer_norm.weight", "mlp_norm/scale", keep),
)
_BIAS = "0.SelfAttention.relative_attention_bias.weight"


def module_from_config(config: Mapping[str, Any]) -> T5Encoder:
    """The encoder that a transformers config describes.

    Raises:
        WeightsError: the MLP is not the gated GELU of T5 v1.1 (the first T5 had a ReLU), or a size is missing.
    """
    activation = config.get("feed_forward_proj")
    if activation != "gated-gelu":
        raise WeightsError(
            f"feed_forward_proj is {activation!r}; only the gated-gelu of T5 v1.1 and umT5 is implemented"
        )
    try:
        return T5Encoder(
            vocab_size=config["vocab_size"],
            width=config["d_model"],
            depth=config["num_layers"],
            num_heads=config["num_heads"],
            head_dim=config["d_kv"],
            mlp_width=config["d_ff"],
            num_buckets=config["relative_attention_num_buckets"],
            max_distance=config["relative_attention_max_distance"],
            has_bias_per_block=config["model_type"] == "umt5",
            epsilon=config["layer_norm_epsilon"],
        )
    except KeyError as error:
        raise WeightsError(f"config.json has no {error}, which T5 needs") from error


def entries(module: T5Encoder) -> list[Entry]:
    """The table from transformers' names to ours."""
    table = [
        Entry("shared.weight", "embed/embedding"),
        Entry("encoder.final_layer_norm.weight", "final_norm/scale"),
    ]
    pattern = "encoder.block.{}.layer."
    if module.has_bias_per_block:
        table.append(Entry(numbered(pattern + _BIAS, module.depth), "blocks/relative_bias/embedding"))
    else:
        table.append(Entry(pattern.format(0) + _BIAS, "relative_bias/embedding"))
    for source, target, transform in _BLOCK:
        table.append(Entry(numbered(pattern + source, module.depth), f"blocks/{target}", transform))
    return table
