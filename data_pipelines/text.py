"""Captions to token ids, for whole batches."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tokenize:
    """Batch step of a loader: replaces `caption` by `text_ids` int32 (b, l) and `text_mask` bool (b, l).

    Attributes:
        encode: (texts, length) -> (ids, mask), for example `nova_jax.models.text.encode_bytes`.
        length: tokens per caption; `encode` pads and cuts.
    """

    encode: Callable[[list[str], int], tuple[Any, Any]]
    length: int

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Tokenises a batch.

        Raises:
            ValueError: there are no captions, or the tokenizer's arrays have another shape.
        """
        if "caption" not in batch:
            raise ValueError(
                f"the batch has no captions to tokenise, only {', '.join(batch)}: use a source with captions"
            )
        captions = [str(text) for text in batch["caption"]]
        ids, mask = (np.asarray(array) for array in self.encode(captions, self.length))
        expected = (len(captions), self.length)
        if ids.shape != expected or mask.shape != expected:
            raise ValueError(f"the tokenizer gave ids {ids.shape} and mask {mask.shape}; both should be {expected}")
        rest = {name: array for name, array in batch.items() if name != "caption"}
        return rest | {"text_ids": ids.astype(np.int32), "text_mask": mask.astype(bool)}
