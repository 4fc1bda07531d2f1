"""Several streams of batches as one: every global batch comes whole from one part, in fixed proportions.

Parts may hold other conditions, so each compiles a training step of its own: as many programs as there are parts, and
no padding to the largest. Which part a batch comes from is a function of its number alone:

    batch i  ->  order[i mod n],  n = sum of the weights,  order: parts spread as evenly as their weights allow

so the position stays one integer, the batch size times the batches so far, and a run resumes as ever.

A batch of one part may have more rows than that of another: where images and clips are mixed, seven images cost as
much as a clip of seven frames.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from data_pipelines import conditioned, workers
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.runs.config import DataSource
from nova_jax.types import Batch, Params

MAX_REFERENCES = 3  # images of earlier shots, as many as requests of films show


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture(DataSource):
    """Parts that share codec and text encoder.

    Attributes:
        parts: (`DataSource`, how many of every n batches it gives) or, third, the rows of its batches over
            the batch size, 1 if left out; the first one describes the mixture.
        processes: that make the batches; 0: this one does.
    """

    parts: tuple[tuple[Any, int] | tuple[Any, int, float | int], ...]
    processes: int = 0

    def __post_init__(self) -> None:
        if not self.parts or any(len(part) not in (2, 3) or part[1] < 1 for part in self.parts):
            raise ValueError("a mixture needs parts, each with a weight of 1 or more")
        if wrong := [rows for rows in self._rows if not rows > 0]:
            raise ValueError(f"the rows of a part are a multiple of the batch size above 0, got {wrong[0]}")

    @property
    def _rows(self) -> list[float]:
        """The rows of each part over the batch size."""
        return [float(part[2]) if len(part) == 3 else 1.0 for part in self.parts]

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """The part of each batch of a cycle: the one that lags furthest behind its share."""
        weights = [part[1] for part in self.parts]
        given, order = [0] * len(weights), []
        for done in range(1, sum(weights) + 1):
            lag = [weight * done / sum(weights) - count for weight, count in zip(weights, given, strict=True)]
            chosen = lag.index(max(lag))
            given[chosen] += 1
            order.append(chosen)
        return tuple(order)

    def describe(self) -> dict[str, Any]:
        """What the first part says, the weights, and the rows where they differ."""
        facts = self.parts[0][0].describe() | {"weights": [part[1] for part in self.parts]}
        return facts | ({"rows": self._rows} if set(self._rows) != {1.0} else {})

    def encode(self, report: Callable[[int, int], None] | None = None) -> None:
        """Encodes what is not in the caches of the parts yet."""
        for part in self.parts:
            part[0].encode(report)

    def examples(self) -> list[tuple[float, Batch]]:
        """For every part its rows per row of the batch size, a mean over all batches, and one sample."""
        shares = [part[1] / len(self.order) * rows for part, rows in zip(self.parts, self._rows, strict=True)]
        return [(share, part[0].examples()[0][1]) for share, part in zip(shares, self.parts, strict=True)]

    def fingerprint(self) -> str:
        """Hash of all parts and their weights."""
        facts = [(part[0].fingerprint(), *part[1:]) for part in self.parts]
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    def codec(self) -> tuple[Any, Params] | None:
        """That of the first part."""
        return self.parts[0][0].codec()

    @property
    def text_encoder(self) -> TextEncoder | None:
        """What reads the captions of the first part."""
        return self.parts[0][0].text_encoder

    def with_text_encoder(self, encoder: TextEncoder) -> "Mixture":
        """The same parts, read by the encoder that a network trains."""
        parts = tuple((part[0].with_text_encoder(encoder), *part[1:]) for part in self.parts)
        return dataclasses.replace(self, parts=parts)

    def scorer(self, per_task: int) -> Any:
        """That of the first part."""
        return self.parts[0][0].scorer(per_task)

    def exam(self, per_task: int) -> Any:
        """That of the first part."""
        return self.parts[0][0].exam(per_task)

    def batch_sizes(self, batch_size: int) -> tuple[int, ...]:
        """The rows of the parts' batches, over all shards, for this batch size.

        Raises:
            ValueError: a part's share of the batch size is no whole number.
        """
        sizes = [rows * batch_size for rows in self._rows]
        if wrong := [size for size in sizes if abs(size - round(size)) > 1e-6]:
            raise ValueError(
                f"a part has {wrong[0] / batch_size:g} times the rows of the batch size {batch_size}, which is "
                f"{wrong[0]:g}: choose whole numbers of rows"
            )
        return tuple(round(size) for size in sizes)

    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """Rows of one shard, from a position on.

        Raises:
            ValueError: `start` lies inside a batch: batches do not divide otherwise than they did. Or the batches of a
                part do not divide over the shards.
        """
        if self.processes:
            alone = dataclasses.replace(self, processes=0)
            return workers.join(alone, self.processes, start, batch_size, shard_index, shard_count)
        return self._batches(start, batch_size, shard_index, shard_count)

    def _batches(self, start: int, batch_size: int, shard_index: int, shard_count: int) -> Iterator[Batch]:
        if start % batch_size:
            raise ValueError(f"position {start} lies inside a batch of {batch_size}: keep the batch size it began with")
        sizes = self.batch_sizes(batch_size)
        if wrong := [size for size in sizes if size % shard_count]:
            raise ValueError(
                f"a part of {wrong[0]} rows does not divide over {shard_count} data shards: choose rows and batch_size "
                f"so that every part of {', '.join(map(str, sizes))} does"
            )
        first = start // batch_size
        streams = [
            part[0].batches(self._before(index, first) * size, size, shard_index, shard_count)
            for index, (part, size) in enumerate(zip(self.parts, sizes, strict=True))
        ]
        number = first
        while True:
            yield next(streams[self.order[number % len(self.order)]])
            number += 1

    def _before(self, part: int, batches: int) -> int:
        """How many of the first batches came from a part."""
        cycles, rest = divmod(batches, len(self.order))
        return cycles * self.parts[part][1] + self.order[:rest].count(part)


def of_videos(
    *,
    videos: Any,
    images: Any = None,
    films: Any = None,
    weights: tuple[int, int, int] = (4, 2, 2),
    image_rows: float = 7.0,
    film_rows: float = 1.0,
    **settings: Any,
) -> Mixture:
    """Clips, images and shots of films in one mixture of nearly equal cost; videos describe it.

        part       latents   beside them                                                 rows of a batch
        videos     f         nothing                                                     the batch size
        images     1         nothing                                                     f times as many
        films      f         references, single frames of earlier shots, at time 0       what is asked for

    A clip goes through the causal autoencoder once and is kept as half-precision latents. Which of its frames are given
    is decided by the objective (`nova_jax.diffusion.given_frames`), so one part serves text to video, image to video,
    interpolation and continuation.

    Args:
        videos: a source of task "video": `pixels` (1 + k t, h, w, 3) and `caption`, such as `scenes.Reels`.
        images: such a source of clips of one frame; None: left out.
        films: such a source whose clips have `references` and `num_references` too; None: left out.
        weights: how many of their sum of batches come from videos, images and films.
        image_rows: rows of a batch of images over the batch size; the cost is that of clips at their latent frames.
        film_rows: rows of a batch of films over the batch size; references make a row longer.
        settings: of `ConditionedLatents`: `codec_path`, `text_encoder`, `cache_path`, `seed`, `threads`, `stored_as`.
    """
    settings = {"stored_as": "float16"} | settings
    parts: list[Any] = [(conditioned.ConditionedLatents(sources=(videos,), **settings), weights[0])]
    if images is not None:
        parts.append((conditioned.ConditionedLatents(sources=(images,), **settings), weights[1], image_rows))
    if films is not None:
        shots = conditioned.ConditionedLatents(sources=(films,), num_frames=MAX_REFERENCES, **settings)
        parts.append((shots, weights[2], film_rows))
    return Mixture(parts=tuple(parts))
