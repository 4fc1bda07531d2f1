"""Several streams of batches as one: every global batch comes whole from one part, in fixed proportions.

Parts may hold other conditions, so each compiles a training step of its own: as many programs as there are parts, and
no padding to the largest. Which part a batch comes from is a function of its number alone:

    batch i  ->  order[i mod n],  n = sum of the weights,  order: parts spread as evenly as their weights allow

so the position stays one integer, the samples consumed over all parts, and a run resumes as ever.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

from data_pipelines import workers
from nova_jax.types import Batch, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """Parts that share latents, codec and text length.

    Attributes:
        parts: (`experiment.DataSource`, how many of every n batches it gives); the first one describes the mixture.
        processes: that make the batches; 0: this one does.
    """

    parts: tuple[tuple[Any, int], ...]
    processes: int = 0

    def __post_init__(self) -> None:
        if not self.parts or any(weight < 1 for _, weight in self.parts):
            raise ValueError("a mixture needs parts, each with a weight of 1 or more")

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """The part of each batch of a cycle: the one that lags furthest behind its share."""
        weights = [weight for _, weight in self.parts]
        given, order = [0] * len(weights), []
        for done in range(1, sum(weights) + 1):
            lag = [weight * done / sum(weights) - count for weight, count in zip(weights, given, strict=True)]
            chosen = lag.index(max(lag))
            given[chosen] += 1
            order.append(chosen)
        return tuple(order)

    def describe(self) -> dict[str, Any]:
        """What the first part says, and the weights."""
        return self.parts[0][0].describe() | {"weights": [weight for _, weight in self.parts]}

    def example(self) -> Batch:
        """One sample of the first part; a network's parameters do not depend on which conditions it is shown."""
        return self.parts[0][0].example()

    def examples(self) -> list[tuple[float, Batch]]:
        """The share of the batches and one sample of every part."""
        return [(weight / len(self.order), data.example()) for data, weight in self.parts]

    def fingerprint(self) -> str:
        """Hash of all parts and their weights."""
        facts = [(data.fingerprint(), weight) for data, weight in self.parts]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def codec(self) -> tuple[Any, Params] | None:
        """That of the first part."""
        return self.parts[0][0].codec()

    def exam(self, per_task: int) -> Any:
        """That of the first part; None where it has none."""
        first = self.parts[0][0]
        return first.exam(per_task) if hasattr(first, "exam") else None

    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """Rows of one shard, from a position on.

        Raises:
            ValueError: `start` lies inside a batch: batches do not divide otherwise than they did.
        """
        if self.processes:
            alone = dataclasses.replace(self, processes=0)
            return workers.join(alone, self.processes, start, batch_size, shard_index, shard_count)
        return self._batches(start, batch_size, shard_index, shard_count)

    def _batches(self, start: int, batch_size: int, shard_index: int, shard_count: int) -> Iterator[Batch]:
        if start % batch_size:
            raise ValueError(f"position {start} lies inside a batch of {batch_size}: keep the batch size it began with")
        first = start // batch_size
        streams = [
            data.batches(self._given(part, first) * batch_size, batch_size, shard_index, shard_count)
            for part, (data, _) in enumerate(self.parts)
        ]
        number = first
        while True:
            yield next(streams[self.order[number % len(self.order)]])
            number += 1

    def _given(self, part: int, batches: int) -> int:
        """How many of the first batches came from a part."""
        cycles, rest = divmod(batches, len(self.order))
        return cycles * self.parts[part][1] + self.order[:rest].count(part)
