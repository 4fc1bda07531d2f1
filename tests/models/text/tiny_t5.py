"""A T5 or umT5 of a few thousand random parameters, in a folder as transformers saves it, with its tokenizer."""

import json
import pathlib
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from nova_jax.models.text.t5 import T5Encoder
from nova_jax.weights import safetensors, t5, tables

TEXT = """a and on of the left right above below background red green blue yellow purple orange white black circle
square star triangle large small"""
WORDS = tuple(TEXT.split())
LETTERS = "abcdefghijklmnopqrstuvwxyz, "
NAMES = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}


def make_module(kind: Literal["t5", "umt5"] = "t5") -> T5Encoder:
    """The encoder that is in the folder."""
    return T5Encoder(
        vocab_size=64, width=16, depth=1, num_heads=2, head_dim=8, mlp_width=24, has_bias_per_block=kind == "umt5"
    )


def write_folder(path: str | pathlib.Path, kind: Literal["t5", "umt5"] = "t5") -> T5Encoder:
    """Writes config.json, model.safetensors and tokenizer.json into a folder, made if need be; returns the module."""
    folder, module = pathlib.Path(path), make_module(kind)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_of(module, kind), indent=2))
    safetensors.write(folder / "model.safetensors", tensors_of(module))
    make_tokenizer().save(str(folder / "tokenizer.json"))
    return module


def config_of(module: T5Encoder, kind: str) -> dict:
    """What transformers writes of such a model, as far as it matters."""
    return {
        "architectures": [NAMES[kind]],
        "model_type": kind,
        "feed_forward_proj": "gated-gelu",
        "vocab_size": module.vocab_size,
        "d_model": module.width,
        "num_layers": module.depth,
        "num_heads": module.num_heads,
        "d_kv": module.head_dim,
        "d_ff": module.mlp_width,
        "relative_attention_num_buckets": module.num_buckets,
        "relative_attention_max_distance": module.max_distance,
        "layer_norm_epsilon": module.epsilon,
    }


def init_params(module: T5Encoder) -> dict:
    """The random parameters that are in the folder."""
    return jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]


def tensors_of(module: T5Encoder) -> dict[str, np.ndarray]:
    """The parameters under transformers' names: the table of `weights.t5`, read backwards."""
    flat, tensors = tables.flatten(init_params(module)), {}
    for entry in t5.entries(module):
        array = np.asarray(flat[entry.target])
        layers = [array] if isinstance(entry.source, str) else list(array)
        for source, layer in zip(entry.sources, layers, strict=True):
            tensors[source] = np.ascontiguousarray(entry.transform(layer))  # transposition is its own inverse
    return tensors


def make_tokenizer() -> tokenizers.Tokenizer:
    """A unigram tokenizer of a few words and all letters; "<pad>" is 0, "</s>" 1."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS] + [(letter, -9.0) for letter in LETTERS] + [("▁", -8.0)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    return tokenizer
