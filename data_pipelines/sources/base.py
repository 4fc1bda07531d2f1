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
import errno
import glob
import hashlib
import importlib
import io
import operator
import os
import re
import reprlib
import secrets
import stat
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, ClassVar, Protocol, SupportsIndex, runtime_checkable

import numpy as np

from data_pipelines.sources import remote
from nova_jax import git_lfs

Sample = dict[str, Any]
Paths = str | os.PathLike[str] | tuple[str, ...]

COMMA = re.compile(r",(?![^{}]*\})")  # outside braces
BRACES = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<list>[^{}]*,[^{}]*))\}")
UNOPENABLE = (  # what the path is, rather than how the disk feels
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)
HIDDEN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN")  # folders of thumbnails, metadata and waste without a leading dot
NOT_READ = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tif", ".tiff")  # images all the same
MAX_NAME = 300  # characters of a name in a sentence; a path is rarely longer
SHORT = reprlib.Repr()
SHORT.maxstring = MAX_NAME
MAX_CAPTION_BYTES = 64 * 1024


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
        return f"{self.shard}, record {show(self.key)}: {self.reason}"


class NoFile(ValueError):
    """A pipe, socket or device where a file is wanted."""


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


class Examinable:
    """What a source offers to whoever scores models of it; one that knows the truth about its samples has answers."""

    def scorer(self, per_task: int) -> Any:
        """What scores images sampled for prompts of its own, `per_task` of each kind; None: nothing does."""
        del per_task

    def exam(self, per_task: int, cut: Callable[[str], str]) -> Any:
        """An `evaluation.exam.Exam`: `per_task` questions a part, captions shortened by `cut`; None: there is none."""
        del per_task, cut

    def read_back(self, images: np.ndarray) -> Any:
        """How many images of its first samples are read back right, with an interval; None: nothing reads them."""
        del images


def examinable(source: Any) -> Examinable:
    """The source, or where it offers nothing of the kind what has no answers."""
    return source if isinstance(source, Examinable) else Examinable()


@dataclasses.dataclass(frozen=True)
class Source(Examinable, abc.ABC):
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
        """A hash that changes whenever a sample would, be it by one letter of a caption; see `digests` for files.

        What a source has read of its files (names, captions of a metadata file, places in a tar) stays as it was: to
        see files that changed since, make a new one.
        """

    def __getitem__(self, index: SupportsIndex, /) -> Sample:
        i, length = operator.index(index), len(self)
        if not -length <= i < length:
            raise IndexError(f"sample {i} of {length}")
        return self.read(i % length)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def read(source: RandomAccess, index: int) -> Any:
    """The sample of any source at 0 <= index < len; its caption, if it has one, is whole Unicode text.

    Raises:
        CorruptRecord: this one sample cannot be read, or its caption is none; see `check_caption`.
    """
    sample = source[index]
    caption = sample.get("caption") if isinstance(sample, dict) else None
    if not isinstance(caption, str):
        return sample
    try:
        return sample | {"caption": check_caption(caption)}
    except ValueError as error:
        raise CorruptRecord(type(source).__name__, index, str(error)) from error


def show(name: Any) -> str:
    """A name that a file gives, as text that can be stored and shown: with `?` for bytes on disk that are not UTF-8.

    One that is long or cannot be printed is quoted and cut.
    """
    text = str(name).encode("utf-8", "replace").decode()
    return text if text.isprintable() and len(text) <= MAX_NAME else SHORT.repr(text)


def find_files(paths: Paths, suffix: str) -> tuple[str, ...]:
    """The files named by a path, a folder (every `*suffix` in it), a glob, or several of those.

    Several are a tuple, a text with commas (`a.tar,b.tar`), or braces as in a shell: `a-{000..127}.tar`,
    `{train,extra}/*.tar`. A file whose very name has commas or braces is itself. URLs are copied here first, see
    `remote`.

    Raises:
        DatasetError: one of them names nothing, or a file that git-lfs has not downloaded.
    """
    found = []
    for path in paths if isinstance(paths, tuple) else (paths,):
        path = os.path.expanduser(os.fspath(path))
        parts = [path] if os.path.exists(path) else filter(None, map(str.strip, COMMA.split(path)))
        found += [_whole(file) for part in parts for file in _expand(os.path.expanduser(part), suffix)]
    if not found:
        raise DatasetError(f"{paths!r} names no file: {_wanted(suffix)}")
    return tuple(found)


def _expand(path: str, suffix: str) -> list[str]:
    """The files named by one path; those of a folder without the hidden ones."""
    if os.path.isdir(path):
        found = sorted(glob.glob(os.path.join(glob.escape(path), "*" + suffix)))
    elif os.path.isfile(path):
        return [path]
    elif braces := BRACES.search(path):
        before, after = path[: braces.start()], path[braces.end() :]
        return [file for choice in _choices(braces) for file in _expand(before + choice + after, suffix)]
    elif remote.is_remote(path):
        found = remote.fetch(path, suffix)
    else:
        found = sorted(glob.glob(path))
    if not found:
        what = f"the folder {path} holds no {suffix} file" if os.path.isdir(path) else f"there is no file {path}"
        raise DatasetError(f"{what}: {_wanted(suffix)}")
    return found


def _wanted(suffix: str) -> str:
    return (
        f"give a file, a folder of {suffix} files, a glob, a range such as a-{{000..012}}{suffix}, or several with "
        "commas between them"
    )


def _whole(path: str) -> str:
    """The path of a file that is there as a whole, and can be read at any place."""
    if not os.path.isfile(path):
        raise DatasetError(f"{path} is no file but {what_it_is(path)}: give files, or move it away")
    if git_lfs.is_pointer_file(path):
        raise DatasetError(f"{path} is {git_lfs.POINTER}")
    return path


def open_file(path: str) -> io.BufferedReader:
    """Opens a file for reading; never a pipe, which would wait for someone to write, nor a socket or device.

    Raises:
        NoFile: it is one of these.
        OSError: the file cannot be opened.
    """
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise NoFile(f"{show(os.path.basename(path))} is {what_it_is(path)}, not a file")
    return open(path, "rb")


def what_it_is(path: str) -> str:
    """What lies at a path that holds no file, in a word."""
    is_kind = {"a folder": os.path.isdir, "a broken link": os.path.islink}
    return next((kind for kind, test in is_kind.items() if test(path)), "a pipe, socket or device")


def _choices(braces: re.Match[str]) -> Iterator[str]:
    """What stands for braces: each of a list, or each number of a range, of one width where an end begins with 0."""
    if braces["list"] is not None:
        yield from braces["list"].split(",")
        return
    first, last = braces["first"], braces["last"]
    is_padded = any(end.startswith("0") and len(end) > 1 for end in (first, last))
    width, step = max(len(first), len(last)) if is_padded else 0, 1 if int(first) <= int(last) else -1
    yield from (f"{i:0{width}d}" for i in range(int(first), int(last) + step, step))


def fingerprint(source: Any) -> str:
    """A source's own fingerprint; that of a frozen dataclass without one, such as a procedural source, is its fields.

    Raises:
        DatasetError: the source has no fingerprint, or its fields hold what a text does not tell whole.
    """
    if hasattr(source, "fingerprint"):
        return source.fingerprint()
    if dataclasses.is_dataclass(source) and not isinstance(source, type):
        hidden = [field.name for field in dataclasses.fields(source) if not field.repr or _holds_array(source, field)]
        if hidden:
            raise DatasetError(
                f"{type(source).__name__} has no fingerprint() and its field {hidden[0]} is an array or hidden from "
                "repr(): add a fingerprint() that changes when its samples change"
            )
        return hashlib.sha256(repr(source).encode()).hexdigest()
    raise DatasetError(f"{type(source).__name__} has no fingerprint(): add one that changes when its samples change")


def _holds_array(source: Any, field: dataclasses.Field[Any]) -> bool:
    return hasattr(getattr(source, field.name), "__array__")  # repr() of a long one leaves out its middle


def status_of(status: os.stat_result) -> str:
    """What stays the same as long as a file does: size, number (inode), times of modification and of change."""
    return f"{status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"


def partial_name(path: str | os.PathLike[str]) -> str:
    """Where to write a file that is renamed when whole; no two writers, of any process or host, get the same name."""
    return f"{os.fspath(path)}.{secrets.token_hex(4)}.partial"


def decode_caption(data: bytes) -> str:
    """Text of a caption file, without a byte-order mark and the space around it.

    Raises:
        ValueError: it is not UTF-8, or far too long to be a caption.
    """
    if len(data) > MAX_CAPTION_BYTES:
        raise ValueError(f"the caption has {len(data)} bytes, more than {MAX_CAPTION_BYTES}")
    return check_caption(data.decode("utf-8")).strip()  # a UnicodeDecodeError is a ValueError


def check_caption(text: str) -> str:
    """A caption from a table or JSON, without a byte-order mark.

    Raises:
        ValueError: it holds half a character (of two code units, JSON may give one), or what a file that is not UTF-8
            leaves; or it is far too long.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        half = ascii(text[error.start])
        raise ValueError(f"the caption is not Unicode: {half} at place {error.start} is half a character") from error
    if size > MAX_CAPTION_BYTES:
        raise ValueError(f"the caption has {size} bytes, more than {MAX_CAPTION_BYTES}")
    return text.removeprefix("\ufeff")


def left_out(count: int, first: str, decoder: Decoder) -> str:
    """What to say of files that look like images and are not read."""
    return (
        f"{count} files are left out, the first {show(first)!r}: {decoder.kind}s are read from names that end in "
        f"{', '.join(decoder.suffixes)}, and in a tar have no other dot; convert or rename them"
    )


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this relative name is one that nobody put there: `._0.png`, `.thumbnails/0.png`."""
    parts = name.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part in HIDDEN for part in parts)


def require(module: str, purpose: str, extra: str = "data") -> ModuleType:
    """An optional dependency, or an error that names the extra to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"{purpose} needs {module.split('.')[0]}: pip install 'nova-jax[{extra}]'") from error
