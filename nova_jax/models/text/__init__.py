"""Text encoders: words (our own), bytes in groups (that of earlier runs), T5; `encoder` is the interface of all."""

from nova_jax.models.text.byte_groups import ByteTextEncoder, encode_bytes
from nova_jax.models.text.encoder import CaptionTooLong, TextEncoder, Tokens
from nova_jax.models.text.pretrained import T5TextEncoder
from nova_jax.models.text.words import WordTextEncoder

__all__ = [
    "ByteTextEncoder",
    "CaptionTooLong",
    "T5TextEncoder",
    "TextEncoder",
    "Tokens",
    "WordTextEncoder",
    "encode_bytes",
]
