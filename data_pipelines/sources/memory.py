"""Pixels of a slow source, made once by all processors and held in memory."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import multiprocessing
import os
from collections.abc import Iterable
from typing import Any

import numpy as np

from data_pipelines.sources import base

PER_TASK = 64  # samples handed to a process at a time


@dataclasses.dataclass(frozen=True)
class Held(base.Source):
    """All samples' `pixels` and nothing else, for a network that learns faster than one process draws.

    Attributes:
        source: samples with `pixels` of one shape.
        processes: that make them; 1: this one; None: as many as there are processors.
    """

    source: Any
    processes: int | None = None

    def __len__(self) -> int:
        return len(self.source)

    @property
    def pixels(self) -> np.ndarray:
        """Those of all samples, stacked, black where one is corrupt; the first call makes them."""
        return _make(self, self._identity)[0]

    @property
    def faults(self) -> dict[int, base.CorruptRecord]:
        """The corrupt samples by index."""
        return _make(self, self._identity)[1]

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        if index in self.faults:
            raise self.faults[index]
        return {"pixels": self.pixels[index]}

    def fingerprint(self) -> str:
        """Hash of the source."""
        return hashlib.sha256(f"held {base.fingerprint(self.source)}".encode()).hexdigest()

    @functools.cached_property
    def _identity(self) -> str:
        return self.fingerprint()


Made = tuple[np.ndarray, dict[int, base.CorruptRecord]]


@functools.lru_cache(maxsize=8)
def _make(held: Held, identity: str) -> Made:
    del identity
    source, indices = held.source, range(len(held.source))
    draw = functools.partial(_draw, source)
    processes = held.processes or os.cpu_count() or 1
    if processes == 1:
        return _fill(len(source), map(draw, indices))
    spawn = multiprocessing.get_context("spawn")  # a forked child of a process with threads may hang
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        return _fill(len(source), pool.map(draw, indices, chunksize=PER_TASK))


def _draw(source: Any, index: int) -> np.ndarray | base.CorruptRecord:
    try:
        return source[index]["pixels"]
    except base.CorruptRecord as fault:
        return fault


def _fill(length: int, made: Iterable[np.ndarray | base.CorruptRecord]) -> Made:
    """The pixels made, and the faults; pixels take their shape from the first of them.

    Raises:
        DatasetError: all samples are corrupt.
    """
    pixels, faults = None, {}
    for i, sample in enumerate(made):
        if isinstance(sample, base.CorruptRecord):
            faults[i] = sample
            continue
        pixels = np.zeros((length, *sample.shape), sample.dtype) if pixels is None else pixels
        pixels[i] = sample
    if pixels is None:
        raise base.DatasetError(f"no sample of {length} can be read; the first one: {faults.get(0)}: repair the data")
    return pixels, faults
