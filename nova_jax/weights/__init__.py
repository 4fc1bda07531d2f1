"""Parameters in and out of files: public checkpoints by key table, our own by path. Everything is safetensors."""

from nova_jax.weights.load import abstract_params, load, save
from nova_jax.weights.safetensors import WeightsError
from nova_jax.weights.text import encode_text, load_text, text_fingerprint

__all__ = ["WeightsError", "abstract_params", "encode_text", "load", "load_text", "save", "text_fingerprint"]
