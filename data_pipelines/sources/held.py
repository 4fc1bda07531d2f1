"""Pixels of a slow source, made once by all processors and held in memory."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import multiprocessing
import os
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
        """Those of all samples, stacked; the first call makes them."""
        return _make(self)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        return {"pixels": self.pixels[index]}

    def fingerprint(self) -> str:
        """Hash of the source."""
        return hashlib.sha256(f"held {base.fingerprint(self.source)}".encode()).hexdigest()


@functools.lru_cache(maxsize=8)
def _make(held: Held) -> np.ndarray:
    source, indices = held.source, range(len(held.source))
    first = source[0]["pixels"]
    pixels = np.empty((len(source), *first.shape), first.dtype)
    draw = functools.partial(_draw, source)
    processes = held.processes or os.cpu_count() or 1
    if processes == 1:
        made = map(draw, indices)
        return _fill(pixels, made)
    spawn = multiprocessing.get_context("spawn")  # a forked child of a process with threads may hang
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        return _fill(pixels, pool.map(draw, indices, chunksize=PER_TASK))


def _draw(source: Any, index: int) -> np.ndarray:
    return source[index]["pixels"]


def _fill(pixels: np.ndarray, made: Any) -> np.ndarray:
    for i, sample in enumerate(made):
        pixels[i] = sample
    return pixels
