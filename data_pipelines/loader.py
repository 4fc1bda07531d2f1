"""From a source to batches: a stream that is a pure function of (source, seed) and whose position is one integer.

    sample p of the stream   = transform(source[order(p)], rng(seed, p)),     p = 0, 1, 2, ... without end
    global batch at position = samples position .. position + batch_size - 1, in this order
    data shard i of n        = rows i * batch_size / n  ..  (i + 1) * batch_size / n - 1 of it

`order` is Grain's seeded shuffle, another one in each epoch. Nothing else enters, so a run resumes from its position
on any number of processes, with the same samples, the same augmentation and the same substitutes for corrupt records.

A corrupt record is replaced by the next readable one in the source, logged, and written to the quarantine list; more
than `max_corrupt` different ones stop the run.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from data_pipelines.sources import base
from nova_jax import conditions, types

Batch = dict[str, np.ndarray]

logger = logging.getLogger(__name__)


class TooManyCorruptRecords(base.DatasetError):
    """More corrupt records than may be replaced or left out."""


@dataclasses.dataclass(frozen=True)
class Loader:
    """Seeded, endless, resumable batches of a source.

    Attributes:
        source: length and samples (dicts) by index.
        batch_size: global, over all data shards.
        seed: of the order and of every sample's random numbers.
        transform: (sample, numpy Generator) -> sample; the generator depends on seed and position alone.
        batch_transform: batch -> batch, for example `captions.Tokenize`.
        shuffle: whether to visit the samples in random order.
        threads: read and transform samples in parallel.
        prefetch: batches prepared ahead.
        max_corrupt: corrupt records to replace: a number, or a fraction of the source when a float.
        quarantine: file to append corrupt records to, as JSON lines; those already in it count.
    """

    source: base.RandomAccess
    _: dataclasses.KW_ONLY
    batch_size: int
    seed: int = 0
    transform: Callable[[Any, np.random.Generator], Any] | None = None
    batch_transform: Callable[[Batch], Batch] | None = None
    shuffle: bool = True
    threads: int = 8
    prefetch: int = 2
    max_corrupt: int | float = 0.001
    quarantine: str | None = None

    def __post_init__(self) -> None:
        if min(self.batch_size, self.threads) < 1 or self.prefetch < 0:
            raise ValueError(
                f"batch_size={self.batch_size} and threads={self.threads} must be at least 1, and "
                f"prefetch={self.prefetch} at least 0"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must lie in 0 .. 2**32 - 1")
        if self.max_corrupt < 0 or (isinstance(self.max_corrupt, float) and self.max_corrupt > 1):
            raise ValueError(
                f"max_corrupt={self.max_corrupt} must be a count of records, or a fraction from 0.0 to 1.0"
            )

    def batches(self, start: int = 0, *, shard_index: int = 0, shard_count: int = 1) -> "Batches":
        """This data shard's rows of every global batch from position `start` on.

        Args:
            start: samples consumed so far, over all shards; any integer.
            shard_index: which part of each batch this process feeds: its data shard, not its process number.
            shard_count: number of data shards.
        """
        return Batches(self, start, shard_index, shard_count)

    def records(self, start: int = 0, *, shard_index: int = 0, shard_count: int = 1) -> Iterator[list[int]]:
        """Which samples of the source this data shard's rows of every batch are; arguments as of `batches`."""
        rows = self.rows(start, shard_index, shard_count)
        for position in itertools.count(start, self.batch_size):
            yield [self._record_at(position + row) for row in rows]

    def rows(self, start: int, shard_index: int, shard_count: int) -> range:
        """The rows of a batch that belong to a data shard.

        Raises:
            ValueError: a negative start, no such shard, or shards that do not divide the batch.
        """
        if start < 0:
            raise ValueError(f"start={start} must be at least 0: it counts samples")
        if not 0 <= shard_index < shard_count or self.batch_size % shard_count:
            raise ValueError(
                f"shard {shard_index} of {shard_count} cannot share batch_size={self.batch_size}: the index must be "
                "below the count, and the count must divide the batch"
            )
        rows = self.batch_size // shard_count
        return range(shard_index * rows, (shard_index + 1) * rows)

    def sample(self, position: int) -> tuple[base.Sample | None, dict[int, base.CorruptRecord]]:
        """The sample at a position of the stream, and the corrupt records met on the way by index.

        None stands for more corrupt records in a row than the loader may replace.
        """
        rng = make_rng(self.seed, position)
        first, length = self._record_at(position), len(self.source)
        faults: dict[int, base.CorruptRecord] = {}
        for attempt in range(min(self.budget + 1, length)):
            index = (first + attempt) % length
            try:
                sample = base.read(self.source, index)
                return (sample if self.transform is None else self.transform(sample, rng)), faults
            except base.CorruptRecord as fault:
                faults[index] = fault
            except Exception as error:
                error.add_note(f"while reading sample {index} of {type(self.source).__name__}, position {position}")
                raise
        return None, faults

    def fingerprint(self) -> str:
        """Hash of everything that decides which sample a position holds. Store it with the position."""
        parts = (base.fingerprint(self.source), len(self.source), self.seed, self.shuffle)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def check(self, fingerprint: str) -> None:
        """Refuses to resume a stream on other data.

        Raises:
            DatasetError: `fingerprint`, stored with a position, is not that of this loader.
        """
        if fingerprint != self.fingerprint():
            raise base.DatasetError(
                "the data, the seed or the shuffling changed since the position was stored, so resuming would give "
                "other samples: restore them, or start a new run"
            )

    @functools.cached_property
    def budget(self) -> int:
        """Corrupt records that may be replaced."""
        return allowed(self.source, self.max_corrupt)

    def _record_at(self, position: int) -> int:
        index: Any = self._order[position]
        return int(index)

    @functools.cached_property
    def _order(self) -> grain.MapDataset:
        order = grain.MapDataset.range(len(self.source))
        return (order.seed(self.seed).shuffle() if self.shuffle else order).repeat()


class Batches(Iterator[Batch]):
    """The rows of one data shard, batch after batch. Threads work ahead; `close()` ends them.

    Attributes:
        position: samples consumed over all shards: the whole state, and the `start` to resume from.
        corrupt: records replaced so far, by index, among this shard's rows.
    """

    def __init__(self, loader: Loader, start: int, shard_index: int, shard_count: int) -> None:
        self._rows = loader.rows(start, shard_index, shard_count)
        self.position = self._submitted = start
        self.corrupt: dict[int, base.CorruptRecord] = {}
        self._loader = loader
        self._known = _read_quarantine(loader.quarantine)
        self._pending: collections.deque[list[concurrent.futures.Future[Any]]] = collections.deque()
        _ = loader._order  # reads the source's index before any thread asks for it
        self._pool = concurrent.futures.ThreadPoolExecutor(loader.threads, thread_name_prefix="loader")
        self.close = weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def __next__(self) -> Batch:
        while len(self._pending) <= self._loader.prefetch:
            self._submit()
        samples = []
        for part in self._pending[0]:
            for sample, faults in part.result():
                self._account(faults)
                if sample is None:
                    raise TooManyCorruptRecords(self._complaint())
                samples.append(sample)
        batch = collate(samples, self.position)
        if self._loader.batch_transform is not None:
            batch = self._loader.batch_transform(batch)
        self._pending.popleft()  # only now: an interrupted call skips nothing
        self.position += self._loader.batch_size
        return batch

    def _submit(self) -> None:
        """Starts the next batch, cut into one piece per thread."""
        positions = [self._submitted + row for row in self._rows]
        size = -(-len(positions) // self._loader.threads)
        pieces = [positions[i : i + size] for i in range(0, len(positions), size)]
        self._pending.append([self._pool.submit(_read, self._loader, piece) for piece in pieces])
        self._submitted += self._loader.batch_size

    def _account(self, faults: Mapping[int, base.CorruptRecord]) -> None:
        for index, fault in faults.items():
            if index in self.corrupt:
                continue
            self.corrupt[index] = fault
            if index not in self._known:
                logger.warning("corrupt record replaced: sample %d, %s", index, fault)
                _write_quarantine(self._loader.quarantine, index, fault)
        if len(self.corrupt.keys() | self._known) > self._loader.budget:
            raise TooManyCorruptRecords(self._complaint())

    def _complaint(self) -> str:
        found = [f"sample {index}, {fault}" for index, fault in self.corrupt.items()]
        known = len(self._known - self.corrupt.keys())
        more = f" and {known} more in {self._loader.quarantine}" if known else ""
        rest = f"; ... {len(found) - 20} others" if len(found) > 20 else ""
        limit = f"max_corrupt={self._loader.max_corrupt} allows {self._loader.budget} of {len(self._loader.source)}"
        return (
            f"{len(found)} corrupt records{more}, but {limit}: repair the data or raise max_corrupt. They are: "
            f"{'; '.join(found[:20])}{rest}"
        )


def allowed(source: base.RandomAccess, max_corrupt: int | float) -> int:
    """How many corrupt records a limit allows: a number, or a fraction of the source when a float."""
    return math.floor(max_corrupt * len(source)) if isinstance(max_corrupt, float) else max_corrupt


def readable(source: base.RandomAccess, indices: Iterable[int], max_corrupt: int | float) -> Iterator[base.Sample]:
    """The samples at these places, such as those to measure a model on; corrupt ones are logged and left out.

    Raises:
        TooManyCorruptRecords: more than `max_corrupt` of them are corrupt, or all.
    """
    count, faults, limit = 0, [], allowed(source, max_corrupt)
    for index in indices:
        try:
            sample = base.read(source, index)
        except base.CorruptRecord as fault:
            logger.warning("corrupt record left out: sample %d, %s", index, fault)
            faults.append(f"sample {index}, {fault}")
            if len(faults) > limit:
                break
        else:
            count += 1
            yield sample
    if faults and (len(faults) > limit or not count):
        raise TooManyCorruptRecords(
            f"{len(faults)} corrupt records beside {count} others, and max_corrupt={max_corrupt} allows {limit}: "
            f"repair the data or raise it. They are: {'; '.join(faults[:20])}"
        )


def make_rng(seed: int, position: int) -> np.random.Generator:
    """The random numbers of one sample: counter-based, so streams are independent and cheap to open."""
    return np.random.Generator(np.random.Philox(key=[seed, position]))


def collate(samples: Sequence[base.Sample], position: int = 0) -> Batch:
    """Stacks samples; texts and numbers become arrays too.

    Raises:
        ValueError: the samples differ in names, shapes or dtypes.
    """
    first = {name: np.asarray(value) for name, value in samples[0].items()}
    for row, sample in enumerate(samples):
        if sample.keys() != first.keys():
            raise ValueError(
                f"samples {position} and {position + row} of the stream hold {sorted(first)} and {sorted(sample)}: all "
                "must hold the same entries; drop the others in a transform"
            )
    batch = {}
    for name, example in first.items():
        values = [np.asarray(sample[name]) for sample in samples]
        for row, value in enumerate(values):
            is_text = value.dtype.kind == example.dtype.kind == "U"  # of any length
            if value.shape != example.shape or (value.dtype != example.dtype and not is_text):
                raise ValueError(
                    f"{name} is {example.dtype} {example.shape} in sample {position} of the stream but {value.dtype} "
                    f"{value.shape} in sample {position + row}: bring them to one form in a transform, such as "
                    "images.Transform(size=...)"
                )
        batch[name] = np.stack(values)
    return batch


def to_batch(arrays: Mapping[str, Any]) -> types.Batch:
    """A training batch from named arrays: `latents`, or else `pixels`, and conditions by the names of their arrays."""
    x0 = arrays.get("latents", arrays.get("pixels"))
    if x0 is None:
        raise ValueError(f"a batch needs latents or pixels; this one holds {', '.join(arrays)}")
    return types.Batch(x0, conditions.from_arrays(arrays))


def _read(loader: Loader, positions: Sequence[int]) -> list[tuple[base.Sample | None, dict[int, base.CorruptRecord]]]:
    return [loader.sample(position) for position in positions]


def _read_quarantine(path: str | None) -> frozenset[int]:
    if path is None or not os.path.exists(path):
        return frozenset()
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.startswith("{") and line.endswith("}\n")]
    return frozenset(line["index"] for line in lines)


def _write_quarantine(path: str | None, index: int, fault: base.CorruptRecord) -> None:
    if path is None:
        return
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    line = json.dumps({"index": index, "shard": fault.shard, "key": fault.key, "reason": fault.reason}) + "\n"
    with open(path, "a", encoding="utf-8") as file:  # one short write: processes may share the file
        file.write(line)
