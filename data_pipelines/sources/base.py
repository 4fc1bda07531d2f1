"""What every source shares: random access to samples, and one way to report trouble.

A sample is a dict: `pixels` uint8 (f, h, w, c) or other arrays, `caption`, and what else the files say. Sources are
frozen dataclasses: choices only, so they pickle, compare and hash; what they read from disk is derived and never
pickled.

Two kinds of trouble are kept apart. A `DatasetError` concerns the whole dataset (a missing path, no captions
anywhere) and is raised as soon as it is opened. A `CorruptRecord` concerns one sample: the loader counts it and takes
another one.
"""

import abc
import dataclasses
import glob
import hashlib
import importlib
import operator
import os
import re
import secrets
from collections.abc import Sequence
from types import ModuleType
from typing import Any, ClassVar, Protocol, SupportsIndex, runtime_checkable

Sample = dict[str, Any]
Paths = str | os.PathLike[str] | tuple[str, ...]

MAX_CAPTION_BYTES = 64 * 1024
ENDS_BYTES = 64 * 1024  # how much of a file's head and tail enters its fingerprint


class DatasetError(ValueError):
    """A dataset that cannot be used as given; one sentence says what to do."""


class CorruptRecord(ValueError):
    """One sample that cannot be read.

    Attributes:
        shard: the file (or dataset) it lies in.
        key: its name or index there.
        reason: what is wrong with it.
    """

    def __init__(self, shard: str, key: str | int, reason: str) -> None:
        super().__init__(shard, key, reason)
        self.shard, self.key, self.reason = shard, key, reason

    def __str__(self) -> str:
        return f"{self.shard}, record {self.key}: {self.reason}"


@runtime_checkable
class RandomAccess(Protocol):
    """All that a loader asks of a source: a length and samples by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@runtime_checkable
class Decoder(Protocol):
    """Encoded files of one kind to frames; a frozen dataclass, so that its choices enter a fingerprint.

    Attributes:
        kind: what one file is, in a word.
        suffixes: of the names of such files, lower case, with the full stop.
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    @property
    def max_bytes(self) -> int:
        """Larger files are refused before they are read."""
        ...

    def __call__(self, data: bytes, /) -> Any:
        """The frames, uint8 (f, h, w, c).

        Raises:
            ValueError: the bytes cannot be decoded, or not within the limits.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Source(abc.ABC):
    """A dataset on disk, read by index."""

    @abc.abstractmethod
    def __len__(self) -> int: ...

    @abc.abstractmethod
    def read(self, index: int) -> Sample:
        """The sample at 0 <= index < len.

        Raises:
            CorruptRecord: this one sample cannot be read.
        """

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """A cheap hash that changes with the files (added, removed, resized, rewritten) and with how they are read.

        It is no proof of equal content.
        """

    def __getitem__(self, index: SupportsIndex, /) -> Sample:
        i, length = operator.index(index), len(self)
        if not -length <= i < length:
            raise IndexError(f"sample {i} of {length}")
        return self.read(i % length)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def find_files(paths: Paths, suffix: str) -> tuple[str, ...]:
    """The files named by a path, a folder (every `*suffix` in it), a glob, a range `a-{000..012}`, or a tuple of those.

    Raises:
        DatasetError: one of them names nothing.
    """
    if not isinstance(paths, tuple):
        return tuple(_expand(os.path.expanduser(paths), suffix))
    return tuple(file for path in paths for file in _expand(os.path.expanduser(path), suffix))


def _expand(path: str, suffix: str) -> list[str]:
    if os.path.isdir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "*" + suffix)))
    elif numbers := re.search(r"\{(\d+)\.\.(\d+)\}", path):
        first, last = numbers.groups()
        names = [f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)]
        return [
            file for name in names for file in _expand(path[: numbers.start()] + name + path[numbers.end() :], suffix)
        ]
    else:
        found = [path] if os.path.isfile(path) else sorted(glob.glob(path))
    if not found:
        what = f"the folder {path} holds no {suffix} file" if os.path.isdir(path) else f"there is no file {path}"
        raise DatasetError(
            f"{what}: give a file, a folder of {suffix} files, a glob or a range such as a-{{000..012}}.tar"
        )
    return found


def fingerprint_files(files: Sequence[str], *choices: Any) -> str:
    """Hash of the name, size, head and tail of each file, and of the choices that decide what is read from them.

    Moving the whole dataset does not change it.
    """
    digest = hashlib.sha256(repr(choices).encode())
    for path in files:
        size = os.path.getsize(path)
        digest.update(f"{os.path.basename(path)}\0{size}\0".encode())
        with open(path, "rb") as file:
            digest.update(file.read(ENDS_BYTES))
            file.seek(max(size - ENDS_BYTES, 0))
            digest.update(file.read(ENDS_BYTES))
    return digest.hexdigest()


def fingerprint(source: Any) -> str:
    """A source's own fingerprint; that of a frozen dataclass without one, such as a procedural source, is its fields.

    Raises:
        DatasetError: the source has no fingerprint.
    """
    if hasattr(source, "fingerprint"):
        return source.fingerprint()
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        return hashlib.sha256(repr(source).encode()).hexdigest()
    raise DatasetError(f"{type(source).__name__} has no fingerprint(): add one that changes when its samples change")


def partial_name(path: str | os.PathLike[str]) -> str:
    """Where to write a file that is renamed when whole; no two writers, of any process or host, get the same name."""
    return f"{os.fspath(path)}.{secrets.token_hex(4)}.partial"


def decode_caption(data: bytes) -> str:
    """Text of a caption file.

    Raises:
        ValueError: it is not UTF-8, or far too long to be a caption.
    """
    if len(data) > MAX_CAPTION_BYTES:
        raise ValueError(f"the caption has {len(data)} bytes, more than {MAX_CAPTION_BYTES}")
    return data.decode("utf-8").strip()  # a UnicodeDecodeError is a ValueError


def require(module: str, purpose: str, extra: str = "data") -> ModuleType:
    """An optional dependency, or an error that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {module.split('.')[0]}: pip install 'nova-jax[{extra}]'") from error
