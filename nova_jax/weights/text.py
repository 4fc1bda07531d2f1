"""Frozen text encoders: their parameters read once, their states, and a fingerprint for what is kept of them."""

import functools
import hashlib
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from nova_jax.models.text.encoder import TextEncoder
from nova_jax.models.text.pretrained import T5TextEncoder
from nova_jax.models.text.t5 import T5Encoder
from nova_jax.parallel.constrain import constrain
from nova_jax.types import Params, as_mask
from nova_jax.weights.load import load
from nova_jax.weights.safetensors import WeightsError


def load_text(encoder: T5TextEncoder, mesh: jax.sharding.Mesh | None = None) -> tuple[T5Encoder, Params]:
    """The module and parameters of a frozen encoder, on the devices of a mesh; None: on the default device.

    Raises:
        WeightsError: the folder cannot be used, or holds another kind of model.
    """
    return _load_once(encoder, mesh)


@functools.lru_cache(maxsize=2)
def _load_once(encoder: T5TextEncoder, mesh: jax.sharding.Mesh | None) -> tuple[T5Encoder, Params]:
    module, params = load(encoder.path, dtype=encoder.dtype, mesh=mesh)
    if not isinstance(module, T5Encoder):
        raise WeightsError(f"{encoder.path} holds a {type(module).__name__}; a T5 or umT5 encoder is needed")
    return module.clone(dtype=encoder.dtype), params


@functools.singledispatch
def encode_text(
    encoder: TextEncoder, ids: Any, mask: Any, *, mesh: jax.sharding.Mesh | None = None
) -> tuple[Float[Array, "b l d"], Bool[Array, "b l"]]:
    """States of captions and their mask; what the mask leaves out is zero. Frozen encoders register theirs.

    With a mesh the parameters lie on it: call it inside `jax.set_mesh`, with ids and mask that are there too.

    Raises:
        TypeError: an encoder that is trained inside a network, whose parameters are there; or see `types.as_mask`.
        WeightsError: see `load_text`.
    """
    raise TypeError(f"{type(encoder).__name__} is trained inside a network: use `network.apply(.., 'encode_text')`")


@encode_text.register
def _(encoder: T5TextEncoder, ids: Any, mask: Any, *, mesh: jax.sharding.Mesh | None = None) -> tuple[Array, Array]:
    module: Any
    module, params = load_text(encoder, mesh)
    mask = as_mask(mask)
    return _make_encode(module)(params, ids, mask), mask


@functools.lru_cache(maxsize=2)
def _make_encode(module: Any) -> Any:
    def encode(params: Params, ids: Array, mask: Array) -> Float[Array, "b l d"]:
        ids, mask = (constrain(a, "batch", "text") for a in (ids, mask))
        states: Any = module.apply({"params": params}, ids, mask)
        return jnp.where(mask[..., None], states, 0)

    return jax.jit(encode)


@functools.singledispatch
def text_fingerprint(encoder: TextEncoder) -> str:
    """Changes when the states of a frozen encoder would. Frozen encoders register theirs."""
    raise TypeError(f"{type(encoder).__name__} is trained inside a network: its states change with every step")


@text_fingerprint.register
def _(encoder: T5TextEncoder) -> str:
    """Hash of tokenizer, configuration and every byte of the weights."""
    digest = hashlib.sha256(f"{encoder.length} {encoder.reads_padding} {jnp.dtype(encoder.dtype)}".encode())
    digest.update(encoder.tokenizer_file.read_bytes())
    for file in sorted(pathlib.Path(encoder.path).glob("*.json")):
        digest.update(json.dumps([file.name, file.read_text(encoding="utf-8")]).encode())
    for file in sorted(pathlib.Path(encoder.path).glob("*.safetensors")):
        with file.open("rb") as opened:
            digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
