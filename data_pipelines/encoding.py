"""Latents (and text states) computed once and kept: source -> encode -> ArrayRecord shards, each with a JSON manifest.

Shard k covers samples [k * shard_size, (k + 1) * shard_size) of the source and depends on nothing else, so shards can
be made by any number of processes, in any order, once or twice (`encode_together`: each its share, each shard once):

    00003-of-00010.array_record     one record per sample, format of `records`
    00003-of-00010.json             count, SHA-256, source and model fingerprints, range, shapes, corrupt records

A file takes its name only when complete, the manifest last; a killed run continues with the shards that are missing.
What it was writing, under a name that ends in .partial, is removed once nobody has written to it for an hour. Two runs
that make the same shard at once both succeed.

The rows of a batch may be cut over the devices of a process (`over_devices`).
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import logging
import multiprocessing
import os
import pathlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import nova_jax
from data_pipelines import loader
from data_pipelines.sources import array_record, base
from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes

FORMAT = 1
IDENTITY = ("format", "model", "source", "transform", "shard_size", "shards")  # shards of one cache agree in these
STALE_SECONDS = 3600
MANIFEST = re.compile(r"(\d{5})-of-(\d{5})\.json")

logger = logging.getLogger(__name__)

Encode = Callable[[loader.Batch], dict[str, Any]]
Report = Callable[[int, int], None]  # samples encoded, of how many


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a source is encoded.

    Attributes:
        batch_size: samples per call of the encoder, always exactly so many (the last ones are repeated and dropped).
        shard_size: samples per shard.
        transform: (sample, numpy Generator) -> sample before encoding, for example `images.Transform(size=(256, 256))`.
        threads: read and transform samples.
        processes: do so instead of threads, if any: for sources that compute their samples, such as the scenes.
        max_corrupt: corrupt records allowed per shard; they are left out and listed in its manifest.
    """

    batch_size: int = 32
    shard_size: int = 4096
    transform: Callable[[Any, np.random.Generator], Any] | None = None
    threads: int = 8
    processes: int = 0
    max_corrupt: int = 8

    def __post_init__(self) -> None:
        if min(self.batch_size, self.shard_size, self.threads) < 1 or self.processes < 0:
            raise ValueError(
                f"batch_size={self.batch_size}, shard_size={self.shard_size} and threads={self.threads} must be at "
                f"least 1, and processes={self.processes} at least 0"
            )


def fingerprint(params: Any) -> str:
    """SHA-256 of a model's parameters: paths, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(np.asarray(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\0".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def max_corrupt_of_all(source: base.RandomAccess, per_shard: int) -> int:
    """How many corrupt records the shards of a source may leave out together."""
    return per_shard * -(-len(source) // Options.shard_size)


def encode_source(
    source: base.RandomAccess,
    encode: Encode,
    path: str | os.PathLike[str],
    *,
    model: str,
    options: Options = Options(),
    shards: Iterable[int] | None = None,
    report: Report | None = None,
) -> list[int]:
    """Encodes a source into a folder that `LatentCache` reads, shard by missing shard, and returns the shards made.

    Args:
        source: what to encode.
        encode: batch of arrays -> dict of arrays with the same first axis, such as `latents` and `text`. What the
            samples hold besides arrays (captions, keys) is kept with them.
        path: the folder.
        model: fingerprint of the encoder, see `fingerprint`.
        options: batch and shard sizes, transform.
        shards: which shards to make, for example `range(process, number, processes)`; each by one process. None: all.
        report: called after every batch with the samples encoded so far and those to encode.

    Raises:
        DatasetError: the folder holds shards of another model or source, or a shard has too many corrupt records; or
            the transform is a lambda or such, which another one could not be told from.
    """
    folder = os.fspath(path)
    os.makedirs(folder, exist_ok=True)
    number = -(-len(source) // options.shard_size)
    values = (FORMAT, model, base.fingerprint(source), _describe(options.transform), options.shard_size, number)
    identity: dict[str, Any] = dict(zip(IDENTITY, values, strict=True))
    _sweep(folder)
    done = _shards_of(folder, identity)
    asked = range(number) if shards is None else list(shards)
    if unknown := [shard for shard in asked if not 0 <= shard < number]:
        raise ValueError(f"shard {unknown[0]} does not exist: {len(source)} samples make shards 0 to {number - 1}")
    missing = {
        shard: range(shard * options.shard_size, min((shard + 1) * options.shard_size, len(source)))
        for shard in asked
        if shard not in done
    }
    made, total = 0, sum(map(len, missing.values()))

    def advance(count: int) -> None:
        nonlocal made
        made += count
        if report is not None:
            report(made, total)

    with _pool(options) as pool:
        for shard, indices in missing.items():
            job = _Job(source, encode, options, indices, pool, advance)
            _write_shard(job, os.path.join(folder, f"{shard:05d}-of-{number:05d}"), identity)
    return list(missing)


def encode_together(
    source: base.RandomAccess,
    encode: Encode,
    path: str | os.PathLike[str],
    *,
    model: str,
    options: Options = Options(),
    report: Report | None = None,
) -> None:
    """As `encode_source`, by all processes of a job, which share the folder: each makes its shards and waits for all.

    Every process must call it, in the same order as other collectives.
    """
    number = -(-len(source) // options.shard_size)
    mine = range(jax.process_index(), number, jax.process_count())
    encode_source(source, encode, path, model=model, options=options, shards=mine, report=report)
    distributed.barrier(f"nova_jax encoding {model}")


def over_devices(encode: Callable[[Any, Any], Any], params: Any) -> Callable[[np.ndarray], np.ndarray]:
    """`encode(params, rows)` on the host's arrays, the rows cut over this process's devices."""
    devices = jax.local_devices()
    if len(devices) == 1:
        return lambda rows: np.asarray(encode(params, rows))
    mesh = meshes.MeshConfig().make(devices)
    cut, whole = meshes.batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    copies = functools.cache(lambda: jax.device_put(params, whole))

    def run(rows: np.ndarray) -> np.ndarray:
        is_even = len(rows) % len(devices) == 0
        with jax.set_mesh(mesh):
            return np.asarray(encode(copies(), jax.device_put(rows, cut if is_even else whole)))

    return run


def _describe(transform: Any) -> str:
    """A transform as text: the fields of a dataclass, the name of a function.

    Raises:
        DatasetError: the text would not tell it from another one.
    """
    if transform is None or dataclasses.is_dataclass(transform):
        return repr(transform)
    name = f"{transform.__module__}.{getattr(transform, '__qualname__', type(transform).__qualname__)}"
    if not inspect.isfunction(transform) or "<" in name:
        raise base.DatasetError(
            f"the transform {name} cannot be told from others like it, so stored samples could be another one's: give "
            "a function of a module, or a frozen dataclass with __call__ whose fields are the choices"
        )
    return name


def _sweep(folder: str) -> None:
    """Removes what killed runs left half written."""
    for path in pathlib.Path(folder).glob("*.partial"):
        with contextlib.suppress(FileNotFoundError):  # another run renamed or removed it
            if time.time() - path.stat().st_mtime > STALE_SECONDS:
                path.unlink()


def _shards_of(folder: str, identity: dict[str, Any]) -> set[int]:
    """The complete shards in a folder.

    Raises:
        DatasetError: one of them was made for something else.
    """
    done = set()
    for name, manifest in _manifests(folder).items():
        if other := [key for key, value in identity.items() if manifest.get(key) != value]:
            raise base.DatasetError(
                f"{os.path.join(folder, name)} was made with another {other[0]} ({manifest.get(other[0])}, now "
                f"{identity[other[0]]}): choose another folder, or delete this one to encode again"
            )
        data = os.path.join(folder, name.removesuffix(".json") + array_record.SUFFIX)
        if os.path.exists(data) and os.path.getsize(data) == manifest["bytes"]:
            done.add(int(name[:5]))
    return done


def _manifests(folder: str) -> dict[str, dict[str, Any]]:
    """The manifests in a folder by file name."""
    found = {}
    for name in sorted(filter(MANIFEST.fullmatch, os.listdir(folder))):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            found[name] = json.load(file)
    return found


class _Job:
    """The encoding of one range of a source; what it finds out goes into the manifest."""

    def __init__(
        self,
        source: base.RandomAccess,
        encode: Encode,
        options: Options,
        indices: range,
        pool: concurrent.futures.Executor,
        advance: Callable[[int], None],
    ) -> None:
        self.source, self.encode, self.options, self.indices, self.pool = source, encode, options, indices, pool
        self.advance = advance
        self.arrays: dict[str, Any] = {}  # name -> dtype, shape
        self.corrupt: list[dict[str, Any]] = []

    def samples(self) -> Iterator[base.Sample]:
        """The encoded samples, in order."""
        for read in self._batches():
            samples = [sample for sample in read if sample is not None]
            if samples:
                yield from self._encode(samples)
            if read:
                self.advance(len(read))

    def _batches(self) -> Iterator[list[base.Sample | None]]:
        """Samples in lists of the batch size, read one list ahead."""
        size, ahead = self.options.batch_size, []
        piece = -(-size // max(self.options.processes, self.options.threads))
        for first in range(0, len(self.indices), size):
            indices = self.indices[first : first + size]
            pieces = [indices[i : i + piece] for i in range(0, len(indices), piece)]
            now, ahead = ahead, [self.pool.submit(_read, self.source, self.options.transform, some) for some in pieces]
            yield self._accept(now)
        yield self._accept(ahead)

    def _accept(self, pieces: list[concurrent.futures.Future[Any]]) -> list[base.Sample | None]:
        """What was read; corrupt records are noted for the manifest, and None stands for them."""
        found = [pair for piece in pieces for pair in piece.result()]
        for index, result in found:
            if isinstance(result, base.CorruptRecord):
                self._note(index, result)
        return [None if isinstance(result, base.CorruptRecord) else result for _, result in found]

    def _note(self, index: int, fault: base.CorruptRecord) -> None:
        logger.warning("corrupt record left out: sample %d, %s", index, fault)
        self.corrupt.append({"index": index, "shard": fault.shard, "key": fault.key, "reason": fault.reason})
        if len(self.corrupt) > self.options.max_corrupt:
            listed = "; ".join(f"{fault['shard']}, record {fault['key']}: {fault['reason']}" for fault in self.corrupt)
            raise base.DatasetError(
                f"more than max_corrupt={self.options.max_corrupt} corrupt records among samples {self.indices.start} "
                f"to {self.indices.stop - 1}: repair the data or raise it. They are: {listed}"
            )

    def _encode(self, samples: list[base.Sample]) -> Iterator[base.Sample]:
        size = self.options.batch_size
        padded = samples + samples[-1:] * (size - len(samples))  # one shape, so a jitted encoder compiles once
        encoded = {name: np.asarray(array) for name, array in self.encode(loader.collate(padded)).items()}
        arrays = {name: [array.dtype.name, list(array.shape[1:])] for name, array in encoded.items()}
        if any(array.shape[:1] != (size,) for array in encoded.values()) or arrays != (self.arrays or arrays):
            raise ValueError(
                f"the encoder returned { ({name: array.shape for name, array in encoded.items()}) }: each array needs "
                f"a first axis of {size} and the same shape in every batch"
            )
        self.arrays = arrays
        for row, sample in enumerate(samples):
            rest = {name: value for name, value in sample.items() if not isinstance(value, np.ndarray)}
            yield rest | {name: array[row] for name, array in encoded.items()}


def _pool(options: Options) -> concurrent.futures.Executor:
    if options.processes:  # JAX's threads do not survive a fork
        return concurrent.futures.ProcessPoolExecutor(options.processes, multiprocessing.get_context("spawn"))
    return concurrent.futures.ThreadPoolExecutor(options.threads)


def _read(source: base.RandomAccess, transform: Any, indices: range) -> list[tuple[int, Any]]:
    """Each index with its sample, or with the fault of a corrupt record."""
    found: list[tuple[int, Any]] = []
    for index in indices:
        try:
            sample = base.read(source, index)
            sample = sample if transform is None else transform(sample, loader.make_rng(0, index))
            found.append((index, sample | {"index": index}))
        except base.CorruptRecord as fault:
            found.append((index, fault))
    return found


def _write_shard(job: _Job, stem: str, identity: dict[str, Any]) -> None:
    """Writes one shard, then its manifest."""
    count = array_record.write(stem + array_record.SUFFIX, job.samples())
    manifest = identity | {
        "first": job.indices.start,
        "count": count,
        "bytes": os.path.getsize(stem + array_record.SUFFIX),
        "sha256": _sha256(stem + array_record.SUFFIX),
        "arrays": job.arrays,
        "corrupt": sorted(job.corrupt, key=lambda fault: fault["index"]),
        "version": nova_jax.__version__,
    }
    partial = base.partial_name(stem + ".json")
    with open(partial, "w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, stem + ".json")


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class LatentCache(base.Source):
    """What `encode_source` wrote: samples with their arrays, caption and `index` in the original source.

    Attributes:
        path: the folder.
        model: fingerprint of the encoder the latents must come from; None accepts any.
    """

    path: str | os.PathLike[str]
    _: dataclasses.KW_ONLY
    model: str | None = None

    def __len__(self) -> int:
        return sum(manifest["count"] for manifest in self._manifests.values())

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        sample = self._records.read(index)
        for name, (dtype, shape) in self.arrays.items():
            array = sample.get(name)
            if not isinstance(array, np.ndarray) or [array.dtype.name, list(array.shape)] != [dtype, shape]:
                raise base.CorruptRecord(os.fspath(self.path), index, f"{name} is not {dtype} {tuple(shape)}")
        return sample

    def fingerprint(self) -> str:
        """Hash of the shards' SHA-256 sums."""
        return hashlib.sha256(repr([manifest["sha256"] for manifest in self._manifests.values()]).encode()).hexdigest()

    def verify(self) -> None:
        """Reads every byte and compares with the manifests.

        Raises:
            DatasetError: shards changed since they were written; they are named.
        """
        wrong = [name for name, manifest in self._manifests.items() if _sha256(self._data(name)) != manifest["sha256"]]
        if wrong:
            raise base.DatasetError(
                f"{len(wrong)} shards of {os.fspath(self.path)} changed since they were written ({', '.join(wrong)}): "
                "delete them and encode again"
            )

    def _data(self, manifest: str) -> str:
        return os.path.join(self.path, manifest.removesuffix(".json") + array_record.SUFFIX)

    @property
    def is_complete(self) -> bool:
        """Whether all shards are there."""
        try:
            return bool(self._manifests)
        except base.DatasetError:
            return False

    @functools.cached_property
    def _manifests(self) -> dict[str, dict[str, Any]]:
        """All manifests, complete and of one model."""
        folder = os.fspath(self.path)
        found = _manifests(folder) if os.path.isdir(folder) else {}
        if not found:
            raise base.DatasetError(f"{folder} holds no latent cache: make one with encode_source")
        first = next(iter(found.values()))
        expected = first if self.model is None else first | {"model": self.model}
        done = _shards_of(folder, {key: expected.get(key) for key in IDENTITY})
        if missing := sorted(set(range(first["shards"])) - done):
            raise base.DatasetError(
                f"{folder} lacks {len(missing)} of {first['shards']} shards ({', '.join(map(str, missing[:10]))}): "
                "encode again to make them; several processes share the folder, and all must encode"
            )
        if not any(manifest["count"] for manifest in found.values()):
            raise base.DatasetError(f"{folder} holds no samples: every record of the source was corrupt")
        return found

    @functools.cached_property
    def arrays(self) -> dict[str, Any]:
        """(dtype, shape) of the arrays of a sample by name, as the manifests tell it."""
        return next(manifest["arrays"] for manifest in self._manifests.values() if manifest["count"])

    @functools.cached_property
    def _records(self) -> array_record.ArrayRecords:
        filled = (name for name, manifest in self._manifests.items() if manifest["count"])
        records = array_record.ArrayRecords(tuple(map(self._data, filled)))
        if len(records) != len(self):
            raise base.DatasetError(
                f"{os.fspath(self.path)} is damaged: its shards hold other counts than their manifests"
            )
        return records
