"""A folder of images or videos, with captions in text files beside them or in one metadata file."""

import csv
import dataclasses
import functools
import hashlib
import json
import logging
import os
import stat
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple, TextIO

from data_pipelines import images
from data_pipelines.sources import base, digests

MAX_COLUMNS = 20  # of a metadata file in a sentence

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Folder(base.Source):
    """Images, or whatever the decoder reads, below `path`, in the order of their names; hidden ones are left out.

    Captions come from `metadata.jsonl` or `metadata.csv` in `path` when there is one: a row per image with
    `file_name` (relative to `path`) and the column `caption`. Otherwise the caption of `a/b.png` is the text of
    `a/b.txt`. A row that cannot be used is one corrupt record.

    Attributes:
        path: the folder.
        caption: column of the metadata file; None for images without captions.
        decoder: how files become arrays; a `VideoDecoder` makes it a folder of videos.
    """

    path: str | os.PathLike[str]
    _: dataclasses.KW_ONLY
    caption: str | None = "caption"
    decoder: base.Decoder = images.ON_WHITE

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len: pixels uint8 (f, h, w, 3), caption, key."""
        name, caption, fault = self._entries[index]
        try:
            if fault:
                raise ValueError(fault)
            with base.open_file(os.path.join(self._root, name)) as file:
                pixels = self.decoder(_read(file, self.decoder))
            if caption is None and self.caption is not None:
                with base.open_file(os.path.join(self._root, _sidecar(name))) as file:
                    caption = base.decode_caption(file.read(base.MAX_CAPTION_BYTES + 1))
        except OSError as error:
            if error.errno not in base.UNOPENABLE:
                raise
            path = base.show(os.path.basename(error.filename))
            is_absent = isinstance(error, FileNotFoundError)
            reason = f"there is no {path}" if is_absent else f"{path} cannot be opened: {error.strerror}"
            raise base.CorruptRecord(self._root, base.show(name), reason) from error
        except ValueError as error:
            raise base.CorruptRecord(self._root, base.show(name), str(error)) from error
        return {"pixels": pixels, "caption": caption or "", "key": base.show(name)}

    def fingerprint(self) -> str:
        """Hash of every image's name and content, and of its caption."""
        names = [entry.name for entry in self._entries if not entry.fault]
        has_sidecars = self.caption is not None and self._metadata() is None
        files = [*names, *map(_sidecar, names)] if has_sidecars else names
        found = digests.digests([os.path.join(self._root, name) for name in files])
        facts = (digests.READING, self.caption, self.decoder, [tuple(entry) for entry in self._entries], found)
        return hashlib.sha256(repr(facts).encode()).hexdigest()

    @functools.cached_property
    def _root(self) -> str:
        root = os.path.expanduser(os.fspath(self.path))
        if not os.path.isdir(root):
            raise base.DatasetError(f"there is no folder {root}: give one with {self._wanted}")
        return root

    @functools.cached_property
    def _entries(self) -> list["_Entry"]:
        """Every image."""
        metadata = self._metadata()
        if metadata is not None and self.caption is not None:
            entries = list(_captioned(self._root, metadata, self.caption))
            if entries and all(entry.fault for entry in entries):
                raise base.DatasetError(f"{entries[0].fault}; and so with all {len(entries)} rows of {metadata}")
        else:
            names = sorted(_walk(self._root))
            entries = [_Entry(name) for name in names if name.lower().endswith(self.decoder.suffixes)]
            self._say_what_is_left_out([name for name in names if name.lower().endswith(base.NOT_READ)])
            self._check_sidecars([entry.name for entry in entries], set(names))
        if not entries:
            raise base.DatasetError(f"{self._root} holds no {self._wanted}: give another folder")
        return entries

    def _say_what_is_left_out(self, names: list[str]) -> None:
        if names:
            logger.warning("%s: %s", self._root, base.left_out(len(names), names[0], self.decoder))

    @property
    def _wanted(self) -> str:
        return f"{self.decoder.kind}s ({', '.join(self.decoder.suffixes)})"

    def _metadata(self) -> str | None:
        paths = [os.path.join(self._root, f"metadata.{suffix}") for suffix in ("jsonl", "csv")]
        return next((path for path in paths if os.path.isfile(path)), None)

    def _check_sidecars(self, entries: list[str], names: set[str]) -> None:
        has_captions = any(_sidecar(name) in names for name in entries)
        if entries and self.caption is not None and not has_captions:
            raise base.DatasetError(
                f"no {self.decoder.kind} in {self._root} has a caption: put NAME.txt beside "
                f"NAME{self.decoder.suffixes[0]}, write metadata.jsonl with file_name and {self.caption}, or set "
                "caption=None"
            )


class _Entry(NamedTuple):
    """One image: its name relative to the folder, its caption if a metadata file holds it, what is wrong with it."""

    name: str
    caption: str | None = None
    fault: str = ""


def _sidecar(name: str) -> str:
    """The file with the caption of an image."""
    return os.path.splitext(name)[0] + ".txt"


def _read(file: BinaryIO, decoder: base.Decoder) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > decoder.max_bytes:
        raise ValueError(f"the {decoder.kind} has {size:,} bytes, more than max_bytes={decoder.max_bytes:,}")
    return file.read()


def _walk(root: str) -> Iterator[str]:
    """Names of all files below `root`, relative to it, with forward slashes.

    Hidden files and folders are left out, links that lead out, and pipes, sockets and devices.
    """
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not base.is_hidden(name)]
        for name in files:
            path = os.path.join(folder, name)
            if not base.is_hidden(name) and _is_data(root, path):
                yield os.path.relpath(path, root).replace(os.sep, "/")


def _is_data(root: str, path: str) -> bool:
    """Whether it is a file, or a link within `root`, whatever became of its target."""
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return True  # gone since it was listed: a corrupt record
    if stat.S_ISLNK(mode):
        return _is_inside(root, path) and (os.path.isfile(path) or not os.path.exists(path))
    return stat.S_ISREG(mode)


def _is_inside(root: str, path: str) -> bool:
    real_root = os.path.realpath(root)
    return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root


def _captioned(root: str, metadata: str, column: str) -> Iterator[_Entry]:
    """Every row of a metadata file, those that name no image or caption as faults."""
    for number, row in enumerate(_rows(metadata), start=1):
        place = f"row {number} of {metadata}"
        if isinstance(row, Exception):
            fault = f"{place} cannot be read ({row}): write one row per image"
            yield _Entry(f"{os.path.basename(metadata)}, row {number}", fault=fault)
            continue
        name, caption = row.get("file_name"), row.get(column)
        if isinstance(name, str) and isinstance(caption, str):
            yield _checked(root, place, name, caption)
            continue
        key = column if isinstance(name, str) else "file_name"
        there = ", ".join(base.show(column) for column in list(row)[:MAX_COLUMNS])
        fault = (
            f"{place} has no text under {key!r}, only {there}: rename one, or name the caption's column with caption="
        )
        yield _Entry(name if isinstance(name, str) else f"{os.path.basename(metadata)}, row {number}", fault=fault)


def _checked(root: str, place: str, name: str, caption: str) -> _Entry:
    """A row with a name and a caption, whatever these are worth."""
    try:
        if not _is_inside(root, os.path.join(root, name)):
            return _Entry(name, fault=f"{place} names {name!r}, which lies outside {root}")
        return _Entry(name, base.check_caption(caption))
    except ValueError as error:
        return _Entry(name, fault=f"{place}: {error}")


def _rows(metadata: str) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a JSON-lines or CSV file; what is wrong with one that cannot be read.

    What is not UTF-8 is kept as such: a file on disk may have such a name, and `check_caption` refuses such a caption.
    """
    with open(metadata, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        if metadata.endswith(".csv"):
            yield from _csv_rows(file)
            return
        for line in filter(str.strip, file):
            try:
                yield dict(json.loads(line.removeprefix("\ufeff")))  # files that were joined begin with one each
            except (ValueError, TypeError, RecursionError) as error:
                yield error


def _csv_rows(file: TextIO) -> Iterator[dict[str, Any] | Exception]:
    rows = csv.DictReader(file, strict=True)
    while True:
        try:
            yield next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield error
