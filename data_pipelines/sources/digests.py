"""What a file holds, as SHA-256 of all its bytes, read again only when the file may have changed.

A digest is remembered together with the file's size, number (inode), time of modification and time of change (ctime,
which programs cannot set). As long as all four stay the same, the file is not read again, neither by this process nor,
where reading took long, by a later one: those digests are kept in `MEMORY`, and may be deleted at any time. A file that
changed within the last `SETTLED_SECONDS` is always read, as its next change could bear the same time.

So a correction of one letter in place is noticed even where the time of modification was put back, and a copy of the
files in another folder has the same digests. Where a file system has no time of change (FAT, some that are mounted over
a network), files of equal size with the time of modification put back are not told apart.
"""

import concurrent.futures
import functools
import hashlib
import json
import logging
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from data_pipelines.sources import base

MEMORY = "~/.cache/nova_jax/digests"
SETTLED_SECONDS = 2.0  # the coarsest time of a file system in use
KEPT_SECONDS = 1.0  # reading that takes longer is remembered between processes
THREADS = 8
PER_TASK = 256  # files handed to a thread at a time
READING = 2  # raise it whenever the same files give other samples than before
UNREADABLE = "unreadable"  # stands for the digest of what is no file, or may not be opened

logger = logging.getLogger(__name__)


def digests(paths: Sequence[str | os.PathLike[str]]) -> list[str]:
    """SHA-256 of every file, hexadecimal; `UNREADABLE` for what cannot be opened."""
    files = [os.path.abspath(os.fspath(path)) for path in paths]
    if not files:
        return []
    folder = os.path.commonpath([os.path.dirname(file) for file in files])
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    stored = os.path.join(os.path.expanduser(MEMORY), f"{name}.json")
    known, start = _recall(stored), time.monotonic()
    tasks = [files[i : i + PER_TASK] for i in range(0, len(files), PER_TASK)]
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        found = [one for some in pool.map(functools.partial(_read, known), tasks) for one in some]
    fresh = {file: one.line for file, one in zip(files, found, strict=True) if one.line != known.get(file)}
    known |= {file: line for file, line in fresh.items() if line}
    if fresh and time.monotonic() - start > KEPT_SECONDS:
        _store(stored, known)
    return [one.digest for one in found]


def fingerprint(files: Sequence[str], *choices: Any) -> str:
    """Hash of the name and content of every file, in order, and of the choices that decide what is read from them.

    It changes when any sample would, and stays the same when the whole dataset is copied or moved.
    """
    named = list(zip(map(os.path.basename, files), digests(files), strict=True))
    return hashlib.sha256(repr((READING, choices, named)).encode()).hexdigest()


class _Read(NamedTuple):
    """What was found out about one file: its digest, and the line to remember ("": none)."""

    digest: str
    line: str = ""


def _read(known: dict[str, str], files: Sequence[str]) -> list[_Read]:
    return [_read_one(known.get(file, ""), file) for file in files]


def _read_one(line: str, file: str) -> _Read:
    """The digest of one file, from what is remembered of it if its status is still the same."""
    now = time.time()
    try:
        with base.open_file(file) as opened:
            status = os.fstat(opened.fileno())
            seen, (remembered, _, digest) = base.status_of(status), line.rpartition(" ")
            if remembered == seen:
                return _Read(digest, line)
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
    except base.NoFile:
        return _Read(UNREADABLE)
    except OSError as error:
        if error.errno not in base.UNOPENABLE:
            raise
        return _Read(UNREADABLE)
    is_settled = now - max(status.st_mtime, status.st_ctime) > SETTLED_SECONDS
    return _Read(digest, f"{seen} {digest}" if is_settled else "")


@functools.cache
def _recall(stored: str) -> dict[str, str]:
    """What is remembered of the files below one folder: path -> line of status and digest."""
    try:
        with open(stored, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}  # absent or unreadable: the files are read
    pairs = found.items() if isinstance(found, dict) else ()
    return {path: line for path, line in pairs if isinstance(line, str)}


def _store(stored: str, known: dict[str, str]) -> None:
    partial = base.partial_name(stored)
    try:
        os.makedirs(os.path.dirname(stored), exist_ok=True)
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(known, file)
        os.replace(partial, stored)
    except OSError as error:
        logger.warning("digests cannot be kept in %s (%s): the files are read again by the next run", stored, error)
