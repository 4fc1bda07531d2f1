"""WebDataset shards: plain tar files whose consecutive members with one stem form a sample (`00012.png`, `00012.txt`).

A sample's name ends at its first dot. Hidden members (`._0.png`, `.ipynb_checkpoints/0.png`) do not count.

Each tar is scanned once for its headers; samples are then read by offset. Nothing is ever extracted, member names are
only labels, and links, devices and sparse files are refused. With `index_dir` the index is kept there as an .npz file
and used again while the tar's size, number (inode) and times of modification and change stay the same; otherwise
nothing is written.

A tar that breaks off or has a damaged header loses what follows. That loss is one corrupt record at the shard's end,
so it is counted and reported like any other.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import os
import posixpath
import zipfile
import zlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from data_pipelines import images
from data_pipelines.sources import base, digests, tar

INDEX_VERSION = 2
SCAN_THREADS = 8  # headers are small reads: latency, not bandwidth

logger = logging.getLogger(__name__)


class Member(NamedTuple):
    """One file of a sample inside the tar."""

    offset: int
    size: int
    crc: int  # CRC-32 of the content, or -1 when not asked for


ABSENT = Member(-1, 0, -1)
LOST = Member(-2, 0, -1)  # stands for everything behind the point where a tar is damaged


class ShardIndex(NamedTuple):
    """Where the samples of one tar lie."""

    keys: np.ndarray  # (n,) names as bytes
    members: np.ndarray  # (n, 2, 3) int64: image and caption, each a Member
    left_out: np.ndarray  # (m,) names as bytes of what looks like an image and is none by the rule of names


@dataclasses.dataclass(frozen=True)
class WebDataset(base.Source):
    """Samples of one or more tar files, in file order.

    Attributes:
        paths: a tar, a folder of tars, a glob, a range such as `a-{000..012}.tar`, or several; see `base.find_files`.
        caption: extension of the caption's member; `json:name` takes the key `name` of the JSON member; None for none.
        decoder: how images become arrays; a `VideoDecoder` makes them tars of videos.
        index_dir: folder to keep the indices in (it may be the tars' own); None scans the headers at every start.
        checksums: also store a CRC-32 of each member when indexing (reads every byte once) and check it on every read.
            Without it, most flipped bits in a JPEG decode to other pixels without any error.
        max_bytes: larger members are refused.
    """

    paths: base.Paths
    _: dataclasses.KW_ONLY
    caption: str | None = "txt"
    decoder: base.Decoder = images.ON_WHITE
    index_dir: str | None = None
    checksums: bool = False
    max_bytes: int = 64 * 2**20

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len: pixels uint8 (f, h, w, 3) or as `decoder` says, caption, key."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        row, path = index - int(self._starts[shard]), self._files[shard]
        key = bytes(self._indices[shard].keys[row]).decode("utf-8", "replace")
        image, text = (Member(*map(int, member)) for member in self._indices[shard].members[row])
        try:
            with open(path, "rb", buffering=0) as file:
                pixels = self.decoder(self._load(file.fileno(), image, self.decoder.kind))
                caption = "" if self.caption is None else self._caption(self._load(file.fileno(), text, "caption"))
        except ValueError as error:
            raise base.CorruptRecord(path, key, str(error)) from error
        return {"pixels": pixels, "caption": caption, "key": key}

    def fingerprint(self) -> str:
        """Hash of each shard's name and content."""
        return digests.fingerprint(self._files, self.caption, self.decoder, self.max_bytes)

    def _load(self, descriptor: int, member: Member, what: str) -> bytes:
        if member == LOST:
            raise ValueError("the tar is damaged or cut short here, and the samples behind this point are lost")
        if member == ABSENT:
            raise ValueError(f"there is no {what}")
        if member.size > self.max_bytes:
            raise ValueError(f"the {what} has {member.size} bytes, more than max_bytes={self.max_bytes}")
        data = os.pread(descriptor, member.size, member.offset)
        if len(data) != member.size:
            raise ValueError(f"the file ends inside the {what}")
        if self.checksums and zlib.crc32(data) != member.crc:
            raise ValueError(f"the {what} has changed since it was indexed (CRC-32 differs)")
        return data

    def _caption(self, data: bytes) -> str:
        _, _, key = (self.caption or "").partition(":")
        if not key:
            return base.decode_caption(data)
        try:
            values = json.loads(data)
        except RecursionError as error:
            raise ValueError("its JSON is nested too deeply") from error
        if not isinstance(values, dict) or not isinstance(values.get(key), str):
            raise ValueError(f"its JSON has no text under {key!r}")
        return base.check_caption(values[key])

    @functools.cached_property
    def _files(self) -> tuple[str, ...]:
        return base.find_files(self.paths, ".tar")

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Index of each shard's first sample, and the total."""
        starts = np.cumsum([0, *(len(index.keys) for index in self._indices)])
        if starts[-1] and self._left_out:
            logger.warning("%s%s", ", ".join(self._files[:3]), self._left_out)
        if not starts[-1]:
            raise base.DatasetError(
                f"{', '.join(self._files)}: no member has a {self.decoder.kind}'s extension "
                f"({', '.join(self.decoder.suffixes)}): give another tar{self._left_out}"
            )
        return starts

    @property
    def _left_out(self) -> str:
        """What to say of files that are not read, if there are any."""
        names = np.concatenate([index.left_out for index in self._indices])
        first = bytes(names[0]).decode("utf-8", "replace") if len(names) else ""
        return f". {base.left_out(len(names), first, self.decoder)}" if len(names) else ""

    @functools.cached_property
    def _indices(self) -> list[ShardIndex]:
        with concurrent.futures.ThreadPoolExecutor(SCAN_THREADS) as pool:
            indices = list(pool.map(self._index, self._files))
        offsets = np.concatenate([index.members[:, 1, 0] for index in indices])
        if self.caption is not None and len(offsets) and (offsets < 0).all():
            raise base.DatasetError(
                f"no sample of {self._files[0]} has a .{self._caption_suffix} member: name the caption's extension "
                "with caption= (json:KEY for a key of a JSON member), or set caption=None"
            )
        return indices

    @property
    def _caption_suffix(self) -> str:
        return (self.caption or "").partition(":")[0].lower()

    def _index(self, path: str) -> ShardIndex:
        """The stored index of one tar if it still fits, else a new one."""
        suffixes = self.decoder.suffixes
        if self.index_dir is None:
            return scan(path, self._caption_suffix, self.checksums, suffixes)
        status = os.stat(path)
        choices = f"{self._caption_suffix} {self.checksums} {' '.join(suffixes)}"
        made_for = f"{INDEX_VERSION} {base.status_of(status)} {choices}"
        place = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:8]  # several folders, one name
        stored = os.path.join(self.index_dir, f"{os.path.basename(path)}.{place}.index.npz")
        index = _load_index(stored, made_for)
        if index is None:
            index = scan(path, self._caption_suffix, self.checksums, suffixes)
            _store_index(stored, made_for, index)
        return index


def scan(path: str, caption_suffix: str, checksums: bool, suffixes: tuple[str, ...]) -> ShardIndex:
    """Reads the headers of a tar whose images (or videos) have names that end in one of the suffixes.

    Raises:
        DatasetError: not an uncompressed tar, or it holds anything but plain files and folders.
    """
    samples: dict[str, list[Member]] = {}  # key -> image, caption
    left_out: list[str] = []
    with open(path, "rb") as file:
        try:
            for entry in tar.entries(file.fileno()):
                if base.is_hidden(entry.name):
                    continue
                slots = dict.fromkeys(suffixes, 0) | {f".{caption_suffix}": 1}
                is_used = _add(samples, path, entry, slots, file.fileno() if checksums else None)
                if not is_used and entry.name.lower().endswith((*suffixes, *base.NOT_READ)):
                    left_out.append(entry.name)
        except tar.Damaged as error:
            if not error.offset:
                raise base.DatasetError(
                    f"{path} is not an uncompressed tar file, or breaks off in its first member ({error.reason}): "
                    "unpack or replace it"
                ) from error
            logger.warning("%s: at byte %d %s; what follows is lost", path, error.offset, error.reason)
            samples[f"(all after byte {error.offset})"] = [LOST, ABSENT]
    found = {key: members for key, members in samples.items() if members[0] != ABSENT}
    places = np.array(list(found.values()), np.int64).reshape(-1, 2, 3)
    return ShardIndex(_as_bytes(found), places, _as_bytes(left_out))


def _as_bytes(names: Iterable[str]) -> np.ndarray:
    return np.array([name.encode("utf-8", "surrogateescape") for name in names], np.bytes_)


def _add(
    samples: dict[str, list[Member]], path: str, entry: tar.Entry, slots: dict[str, int], descriptor: int | None
) -> bool:
    """Files one member under its sample, in the slot of its suffix, if it has one; says so.

    A sample's name ends at its first dot, so `0.seg.png` is the `seg.png` of sample 0 and not its image. A
    `descriptor` asks for its checksum.
    """
    if not entry.is_plain:
        raise base.DatasetError(
            f"{path} holds {entry.name!r}, a link, device or sparse file: repack it with plain files"
        )
    folder, name = posixpath.split(entry.name)
    stem, _, suffix = name.partition(".")
    slot = slots.get(f".{suffix.lower()}")
    if not stem or slot is None:
        return False
    members = samples.setdefault(posixpath.join(folder, stem), [ABSENT, ABSENT])
    if members[slot] != ABSENT:
        raise base.DatasetError(f"{path} holds {entry.name!r} although sample {stem} already has one: repack it")
    crc = -1 if descriptor is None else zlib.crc32(os.pread(descriptor, entry.size, entry.offset))
    members[slot] = Member(entry.offset, entry.size, crc)
    return True


def _load_index(stored: str, made_for: str) -> ShardIndex | None:
    try:
        with np.load(stored, allow_pickle=False) as file:
            if str(file["made_for"]) == made_for:
                return ShardIndex(file["keys"], file["members"], file["left_out"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # absent or unreadable: it is made again
    return None


def _store_index(stored: str, made_for: str, index: ShardIndex) -> None:
    os.makedirs(os.path.dirname(stored) or ".", exist_ok=True)
    partial = base.partial_name(stored)
    with open(partial, "wb") as file:
        np.savez(file, made_for=np.array(made_for), **index._asdict())
    os.replace(partial, stored)
