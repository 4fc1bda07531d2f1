"""Bytes in groups as text tokens: the encoder of earlier runs, and the one that `models.text.words` is compared with.

UTF-8 bytes are embedded, every `downsample` bytes are merged into one token, and a few T5 blocks (models/text/t5.py)
let the tokens see each other:

    e = embed(ids)                                     bytes, 0 where masked
    x = gelu([e of the previous, this and the next group] Up) Down      one token per group: a strided convolution
    x = RMSNorm(blocks(x))                             bidirectional, relative position bias

64 bytes make 16 tokens. The groups fall where they fall, so that a word has to be learnt in as many alignments as a
group has bytes: attributes are bound to objects late or never. With `aligns_words` each word is padded to whole groups.

Bytes as tokens: Xue et al. 2021 (ByT5), arXiv:2105.13626; merging by a strided convolution: Clark et al. 2021 (CANINE),
arXiv:2103.06874.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from nova_jax.layers import linear
from nova_jax.models.text import encoder, t5, words
from nova_jax.types import Mask, as_mask

NULL = 0  # padding, and the whole of the null caption
START = 1
FIRST_BYTE = 2
VOCAB_SIZE = FIRST_BYTE + 256


def encode_bytes(captions: Sequence[str], length: int) -> encoder.Tokens:
    """UTF-8 ids and mask of `length` positions: a start token, the bytes, then padding.

    The start token is always unmasked, so the empty caption is text too (it differs from the null caption).

    Args:
        captions: any Unicode text.
        length: positions, start token included.

    Raises:
        CaptionTooLong: a caption has more than `length - 1` bytes.
    """
    ids = np.full((len(captions), length), NULL, np.int32)
    for row, caption in zip(ids, captions, strict=True):
        data = caption.encode()
        if len(data) > length - 1:
            raise encoder.too_long(caption, len(data), length - 1, "UTF-8 bytes")
        row[0] = START
        row[1 : 1 + len(data)] = np.frombuffer(data, np.uint8).astype(np.int32) + FIRST_BYTE
    return encoder.Tokens(ids, ids != NULL)


def align(caption: str, group: int) -> bytes:
    """The bytes of a caption, each word padded with spaces to whole groups.

    The first group is one byte shorter: the start token stands before it.
    """
    data = bytearray()
    for word in words.split(caption):
        data += word.encode()
        data += b" " * (-(1 + len(data)) % group)
    return bytes(data)


class GroupEmbed(nn.Module):
    """Groups of bytes to tokens: a two-layer convolution of stride one group and width three groups."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, groups: Float[Array, "b m e"]) -> Float[Array, "b m d"]:
        """Reads each group with both neighbours, zeros beyond the ends; returns float32."""
        padded = jnp.pad(groups, ((0, 0), (1, 1), (0, 0)))
        windows = jnp.concatenate([padded[:, :-2], groups, padded[:, 2:]], axis=-1)
        init = nn.initializers.lecun_normal()
        hidden = jax.nn.gelu(linear.Dense(self.width, kernel_init=init, dtype=self.dtype, name="in")(windows))
        return linear.Dense(self.width, kernel_init=init, dtype=self.dtype, name="out")(hidden).astype(jnp.float32)


class ByteTextEncoder(nn.Module):
    """Byte ids to text states, `downsample` bytes a token."""

    width: int = 256
    depth: int = 2
    num_heads: int = 4
    byte_width: int = 64
    downsample: int = 4
    mlp_ratio: float = 4.0
    length: int = 64  # bytes of a caption, the start token included
    aligns_words: bool = False  # pads every word to whole groups
    dtype: Any = jnp.float32

    @property
    def is_frozen(self) -> bool:
        """False: it is trained inside the network."""
        return False

    @nn.nowrap
    def tokenize(self, captions: Sequence[str], *, truncate: bool = False) -> encoder.Tokens:
        """Ids and mask (n, length): a start token, then the bytes; see `TextEncoder`.

        Raises:
            CaptionTooLong: a caption has more than `length - 1` bytes and `truncate` is False.
        """
        captions = [self.cut(caption) for caption in captions] if truncate else captions
        if self.aligns_words:
            captions = [align(caption, self.downsample).decode() for caption in captions]
        return encode_bytes(captions, self.length)

    @nn.nowrap
    def cut(self, caption: str) -> str:
        """The longest beginning of a caption that fits."""
        if not self.aligns_words:
            return caption.encode()[: self.length - 1].decode(errors="ignore")
        while len(align(caption, self.downsample)) > self.length - 1:
            caption = caption[:-1]
        return caption

    @nn.nowrap
    def null(self, batch_size: int) -> encoder.Tokens:
        """The null caption, one group."""
        return encoder.make_null(batch_size, (self.downsample,))

    @nn.nowrap
    def num_states(self, length: int) -> int:
        """One state a group."""
        return length // self.downsample

    @nn.compact
    def __call__(self, ids: t5.Ids, mask: Mask) -> tuple[Float[Array, "b m d"], Bool[Array, "b m"]]:
        """States and their mask, m = l / downsample. Masked states are zero and never influence the others.

        Raises:
            ValueError: l is not a multiple of `downsample`.
        """
        ids, mask = jnp.asarray(ids), as_mask(mask)
        if ids.shape[1] % self.downsample:
            raise ValueError(f"text length {ids.shape[1]} is not a multiple of downsample={self.downsample}")
        embedded = nn.Embed(VOCAB_SIZE, self.byte_width, embedding_init=nn.initializers.normal(1.0), name="embed")(ids)
        embedded = jnp.where(mask[..., None], embedded, 0)
        groups = embedded.reshape(ids.shape[0], -1, self.downsample * self.byte_width)
        group_mask = mask.reshape(*groups.shape[:2], self.downsample).any(-1)

        x = GroupEmbed(self.width, self.dtype, name="group_embed")(groups)
        bias = t5.RelativeBias(self.num_heads, name="relative_bias")(x.shape[1])
        blocks = t5.make_blocks(self.width, self.depth, self.num_heads, self.mlp_ratio, self.dtype)
        x, _ = blocks(x, t5.Context(bias, group_mask))
        x = nn.RMSNorm(dtype=jnp.float32, name="final_norm")(x)
        return jnp.where(group_mask[..., None], x, 0), group_mask

    @nn.nowrap
    def flops(self, length: int) -> int:
        """Forward FLOPs of one caption of `length` bytes; see `TextEncoder`."""
        tokens, window = length // self.downsample, 3 * self.downsample * self.byte_width
        merge = 2 * tokens * self.width * (window + self.width)
        return merge + self.depth * t5.block_flops(tokens, self.width, self.width, round(self.mlp_ratio * self.width))
