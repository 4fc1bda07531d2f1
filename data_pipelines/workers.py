"""Batches made by several processes: for data that takes longer to make than to learn from.

Threads share one interpreter, so a source that computes its samples in Python (the scenes) or draws much at random per
sample (the editing conditions) keeps an accelerator waiting. Each process here makes its part of the rows of every
batch, as the processes of a bigger machine would, and this one joins the parts. The stream is the same for any number.
"""

import math
import multiprocessing
import weakref
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np

from nova_jax.types import Batch

AHEAD = 4  # batches that each process may be ahead


def join(
    data: Any, processes: int, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1
) -> Iterator[Batch]:
    """Rows of one shard of a stream, from a position on.

    Args:
        data: a `DataSource` that can be pickled.
        processes: how many at most: as many of them work as divide the rows.
        start: samples consumed so far, over all shards.
        batch_size: global.
        shard_index: which part of each batch.
        shard_count: number of parts.

    Raises:
        ValueError: fewer than one process, or the shards do not divide the rows.
        RuntimeError: a process failed; its error is on standard error.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be a whole number of 1 or more, or 0 for this one alone")
    sizes = data.batch_sizes(batch_size)
    rows, rest = divmod(math.gcd(*sizes), shard_count)
    if rest:
        raise ValueError(f"batches of {', '.join(map(str, sizes))} rows do not divide over {shard_count} data shards")
    count = max(n for n in range(1, processes + 1) if rows % n == 0)
    shards = [(shard_index * count + k, count * shard_count) for k in range(count)]
    return _Joined(data, start, batch_size, shards)


class _Joined(Iterator[Batch]):
    """The parts of all processes, batch after batch; they end with this object."""

    def __init__(self, data: Any, start: int, batch_size: int, shards: list[tuple[int, int]]) -> None:
        context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
        self._ends: list[Connection] = []
        processes = []
        for shard in shards:
            mine, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, data, start, batch_size, shard), daemon=True)
            process.start()
            theirs.close()
            self._ends.append(mine)
            processes.append(process)
            for _ in range(AHEAD):
                mine.send(None)
        self.close = weakref.finalize(self, _stop, processes)

    def __next__(self) -> Batch:
        try:
            parts = [end.recv() for end in self._ends]
            for end in self._ends:
                end.send(None)
        except (EOFError, OSError) as error:
            raise RuntimeError("a process that makes batches has ended: its error is on standard error") from error
        return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def _work(connection: Connection, data: Any, start: int, batch_size: int, shard: tuple[int, int]) -> None:
    """Makes one shard's rows, and gives one batch for each thing received."""
    jax.config.update("jax_platforms", "cpu")
    try:
        for batch in data.batches(start, batch_size, *shard):
            connection.recv()
            connection.send(jax.tree.map(np.asarray, batch))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # nobody listens any more


def _stop(processes: list[Any]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()
