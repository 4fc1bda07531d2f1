"""Samples in memory: arrays at hand, or those of a slow source, made once by as many processes as there are."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import multiprocessing
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipelines.sources import base

PER_TASK = 64  # samples handed to a process at a time


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays(base.Source):
    """Latents (or pixels: set `name`), first axis samples, with one caption each.

    Attributes:
        latents: (n, f, h, w, c).
        captions: n texts, or None for unconditional data.
        name: what the array is called in a sample.
        extra: further arrays by name, first axis samples.
    """

    latents: np.ndarray
    captions: Sequence[str] | None = None
    name: str = "latents"
    extra: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.latents):
            raise base.DatasetError("there are no samples: the first axis of the array has length 0")
        if self.captions is not None and len(self.captions) != len(self.latents):
            raise base.DatasetError(
                f"{len(self.latents)} samples but {len(self.captions)} captions: give one each, or captions=None"
            )

    def __len__(self) -> int:
        return len(self.latents)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        caption = {} if self.captions is None else {"caption": self.captions[index]}
        return {self.name: self.latents[index]} | caption | {name: array[index] for name, array in self.extra.items()}

    def fingerprint(self) -> str:
        """Hash of all content: it is at hand."""
        digest = hashlib.sha256(repr((self.name, self.latents.dtype.name, self.latents.shape)).encode())
        digest.update(np.ascontiguousarray(self.latents).view(np.uint8).data)
        digest.update(repr(None if self.captions is None else list(self.captions)).encode())
        for name, array in self.extra.items():
            digest.update(f"{name} {array.dtype.name} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()


class Stacked(NamedTuple):
    """All samples of a source.

    Attributes:
        arrays: by name, first axis samples, zeros where one is corrupt.
        others: what each sample holds besides arrays.
        faults: the corrupt samples by index.
    """

    arrays: dict[str, np.ndarray]
    others: list[base.Sample]
    faults: dict[int, base.CorruptRecord]


@dataclasses.dataclass(frozen=True)
class InMemory(base.Source):
    """All samples of another source, made when the first one is asked for.

    Attributes:
        source: samples whose arrays have one shape.
        processes: that make them; 0: this one; None: as many as there are processors.
    """

    source: Any
    processes: int | None = 0

    def __len__(self) -> int:
        return len(self.source)

    @property
    def samples(self) -> Stacked:
        """All of them; the first call makes them."""
        return _stack(self, self._identity)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        arrays, others, faults = self.samples
        if index in faults:
            raise faults[index]
        return others[index] | {name: array[index] for name, array in arrays.items()}

    def fingerprint(self) -> str:
        """Hash of the source."""
        of = base.fingerprint(self.source)
        # Runs that were started with samples made by processes know them by another name.
        return of if self.processes == 0 else hashlib.sha256(f"held {of}".encode()).hexdigest()

    @functools.cached_property
    def _identity(self) -> str:
        return self.fingerprint()


@functools.lru_cache(maxsize=32)
def _stack(held: InMemory, identity: str) -> Stacked:
    del identity
    indices, read = range(len(held.source)), functools.partial(_read, held.source)
    processes = os.cpu_count() or 1 if held.processes is None else held.processes
    if processes < 2:
        return _fill(len(indices), map(read, indices))
    spawn = multiprocessing.get_context("spawn")  # a forked child of a process with threads may hang
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        return _fill(len(indices), pool.map(read, indices, chunksize=PER_TASK))


def _read(source: Any, index: int) -> base.Sample | base.CorruptRecord:
    try:
        return base.read(source, index)
    except base.CorruptRecord as fault:
        return fault


def _fill(length: int, made: Iterable[base.Sample | base.CorruptRecord]) -> Stacked:
    """Stacks samples as they are made.

    Raises:
        DatasetError: all samples are corrupt, or their arrays differ in names or shapes.
    """
    stacked, others, faults = {}, [], {}
    for i, sample in enumerate(made):
        if isinstance(sample, base.CorruptRecord):
            faults[i] = sample
            others.append({})
            continue
        arrays = {name: value for name, value in sample.items() if isinstance(value, np.ndarray)}
        others.append({name: value for name, value in sample.items() if name not in arrays})
        if not stacked:
            stacked = {name: np.zeros((length, *array.shape), array.dtype) for name, array in arrays.items()}
        shapes = {name: array.shape[1:] for name, array in stacked.items()}
        if {name: array.shape for name, array in arrays.items()} != shapes:
            raise base.DatasetError(f"sample {i} holds other arrays than those before it, which are {shapes}")
        for name, array in arrays.items():
            stacked[name][i] = array
    if len(faults) == length:
        raise base.DatasetError(f"no sample of {length} can be read; the first one: {faults.get(0)}: repair the data")
    return Stacked(stacked, others, faults)
