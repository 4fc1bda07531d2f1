"""A folder of pictures or videos, with captions in text files beside them or in one metadata file."""

import csv
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

from data_pipelines import images
from data_pipelines.sources import base


@dataclasses.dataclass(frozen=True)
class Folder(base.Source):
    """Pictures, or whatever the decoder reads, below `path`, in the order of their names.

    Captions come from `metadata.jsonl` or `metadata.csv` in `path` when there is one: a row per picture with
    `file_name` (relative to `path`) and the column `caption`. Otherwise the caption of `a/b.png` is the text of
    `a/b.txt`.

    Attributes:
        path: the folder.
        caption: column of the metadata file; None for pictures without captions.
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
        name, caption = self._entries[index]
        try:
            with open(os.path.join(self._root, name), "rb") as file:
                pixels = self.decoder(_read(file, self.decoder))
            if caption is None and self.caption is not None:
                with open(os.path.join(self._root, os.path.splitext(name)[0] + ".txt"), "rb") as file:
                    caption = base.decode_caption(file.read(base.MAX_CAPTION_BYTES + 1))
        except FileNotFoundError as error:
            raise base.CorruptRecord(self._root, name, f"there is no {os.path.basename(error.filename)}") from error
        except ValueError as error:
            raise base.CorruptRecord(self._root, name, str(error)) from error
        return {"pixels": pixels, "caption": caption or "", "key": name}

    def fingerprint(self) -> str:
        """Hash of every picture's name and size, and of the captions' (or of the metadata file)."""
        digest = hashlib.sha256(repr((self.caption, self.decoder)).encode())
        for name, caption in self._entries:
            sidecar = os.path.splitext(name)[0] + ".txt"
            for file in (name, sidecar):
                path = os.path.join(self._root, file)
                digest.update(f"{file}\0{os.path.getsize(path) if os.path.exists(path) else -1}\0".encode())
            digest.update((caption or "").encode())
        return digest.hexdigest()

    @functools.cached_property
    def _root(self) -> str:
        root = os.path.expanduser(os.fspath(self.path))
        if not os.path.isdir(root):
            raise base.DatasetError(f"there is no folder {root}: give one with {self._wanted}")
        return root

    @functools.cached_property
    def _entries(self) -> list[tuple[str, str | None]]:
        """(relative name, caption if a metadata file holds it) of every picture."""
        metadata = self._metadata()
        if metadata is not None and self.caption is not None:
            entries: list[tuple[str, str | None]] = [*_captioned(self._root, metadata, self.caption)]
        else:
            names = sorted(_walk(self._root))
            entries = [(name, None) for name in names if name.lower().endswith(self.decoder.suffixes)]
            self._check_sidecars(entries, set(names))
        if not entries:
            raise base.DatasetError(f"{self._root} holds no {self._wanted}: give another folder")
        return entries

    @property
    def _wanted(self) -> str:
        return f"{self.decoder.kind}s ({', '.join(self.decoder.suffixes)})"

    def _metadata(self) -> str | None:
        paths = [os.path.join(self._root, f"metadata.{suffix}") for suffix in ("jsonl", "csv")]
        return next((path for path in paths if os.path.exists(path)), None)

    def _check_sidecars(self, entries: list[tuple[str, str | None]], names: set[str]) -> None:
        has_captions = any(os.path.splitext(name)[0] + ".txt" in names for name, _ in entries)
        if entries and self.caption is not None and not has_captions:
            raise base.DatasetError(
                f"no {self.decoder.kind} in {self._root} has a caption: put NAME.txt beside "
                f"NAME{self.decoder.suffixes[0]}, write metadata.jsonl with file_name and {self.caption}, or set "
                "caption=None"
            )


def _read(file: BinaryIO, decoder: base.Decoder) -> bytes:
    size = os.fstat(file.fileno()).st_size
    if size > decoder.max_bytes:
        raise ValueError(f"the {decoder.kind} has {size:,} bytes, more than max_bytes={decoder.max_bytes:,}")
    return file.read()


def _walk(root: str) -> Iterator[str]:
    """Names of all plain files below `root`, relative to it, with forward slashes; links that lead out are left out."""
    for folder, _, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path) or _is_inside(root, path):
                yield os.path.relpath(path, root).replace(os.sep, "/")


def _is_inside(root: str, path: str) -> bool:
    real_root = os.path.realpath(root)
    return os.path.commonpath([real_root, os.path.realpath(path)]) == real_root


def _captioned(root: str, metadata: str, column: str) -> Iterator[tuple[str, str]]:
    """(name, caption) of every row of a metadata file."""
    for number, row in enumerate(_rows(metadata), start=1):
        missing = [key for key in ("file_name", column) if not isinstance(row.get(key), str)]
        if missing:
            raise base.DatasetError(
                f"row {number} of {metadata} has no text under {missing[0]!r}, only {', '.join(map(str, row))}: "
                "rename one, or name the caption's column with caption="
            )
        if not _is_inside(root, os.path.join(root, row["file_name"])):
            raise base.DatasetError(f"row {number} of {metadata} names {row['file_name']!r}, which lies outside {root}")
        yield row["file_name"], row[column]


def _rows(metadata: str) -> Iterator[dict[str, Any]]:
    """The rows of a JSON-lines or CSV file."""
    with open(metadata, encoding="utf-8-sig", newline="") as file:
        try:
            if metadata.endswith(".csv"):
                yield from csv.DictReader(file, strict=True)
            else:
                yield from (dict(json.loads(line)) for line in file if line.strip())
        except (ValueError, TypeError, csv.Error) as error:
            raise base.DatasetError(f"{metadata} cannot be read ({error}): write one row per picture") from error
