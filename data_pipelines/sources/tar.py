"""The headers of an uncompressed tar file, read one by one without extracting anything.

The forms in use are understood (ustar, GNU long names, pax names and sizes); each header's checksum is checked, so
that a damaged or cut archive is noticed instead of ending quietly.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
PLAIN, FOLDER = b"07\0", b"5"  # header types
LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL = b"L", b"K", b"x", b"g"
MAX_EXTENSION = 2**20  # bytes of a long name or pax header


class Damaged(Exception):
    """The archive cannot be followed past byte `offset`."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(offset, reason)
        self.offset, self.reason = offset, reason


class Entry(NamedTuple):
    """One member: its name (a label, never a path to write to) and where its content lies."""

    name: str
    offset: int
    size: int
    is_plain: bool  # a regular file without holes


def entries(descriptor: int) -> Iterator[Entry]:
    """The members of an open tar file, folders left out.

    Raises:
        Damaged: a header is wrong, or the file ends before the archive does. Members yielded so far are sound.
    """
    file_size, position = os.fstat(descriptor).st_size, 0
    extension: dict[bytes, bytes] = {}
    while True:
        block = os.pread(descriptor, BLOCK, position)
        if block == bytes(BLOCK):
            return
        size = _size(block, position)
        kind, content = block[156:157], position + BLOCK
        if kind in (LONG_NAME, LONG_LINK, PAX, PAX_GLOBAL):
            extension |= _extension(descriptor, kind, content, size)
        else:
            name, size = _name(block, extension), int(extension.get(b"size", size))
            has_holes = any(key.startswith(b"GNU.sparse") for key in extension)
            if content + size > file_size:
                raise Damaged(position, f"the file ends at byte {file_size}, inside {name!r}")
            if kind != FOLDER:
                yield Entry(name, content, size, kind in PLAIN and not has_holes)
            extension = {}
        position = content + -(-size // BLOCK) * BLOCK


def _size(block: bytes, position: int) -> int:
    """The size field of a sound header."""
    if len(block) < BLOCK:
        raise Damaged(position, "the file ends where a header should be")
    try:
        if int(block[148:156].strip(b" \0"), 8) != sum(block) - sum(block[148:156]) + 8 * ord(" "):
            raise Damaged(position, "the header's checksum does not fit")
        if block[124] == 0x80:  # base 256, for 8 GiB and more
            return int.from_bytes(block[125:136], "big")
        return int(block[124:136].strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise Damaged(position, "not a tar header") from error


def _extension(descriptor: int, kind: bytes, offset: int, size: int) -> dict[bytes, bytes]:
    """What a long-name or pax block says about the next member."""
    if size > MAX_EXTENSION:
        raise Damaged(offset, f"an extended header claims {size} bytes")
    data = os.pread(descriptor, size, offset)
    if kind == LONG_NAME:
        return {b"path": data.rstrip(b"\0")}
    return _pax(data, offset) if kind == PAX else {}


def _pax(data: bytes, offset: int) -> dict[bytes, bytes]:
    """Lines `LENGTH KEY=VALUE`; LENGTH counts the whole line."""
    found = {}
    while data:
        digits, _, _ = data.partition(b" ")
        if not digits.isdigit() or not len(digits) + 1 < int(digits[:10]) <= len(data):
            raise Damaged(offset, "an extended header is malformed")
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if key == b"size" and not (value.isdigit() and len(value) < 20):
            raise Damaged(offset, "an extended header is malformed")
        found[key], data = value, data[int(digits) :]
    return found


def _name(block: bytes, extension: dict[bytes, bytes]) -> str:
    name, prefix = (part.split(b"\0")[0] for part in (block[:100], block[345:500]))
    if block[257:263] == b"ustar\0" and prefix:
        name = prefix + b"/" + name
    return extension.get(b"path", name).decode("utf-8", "surrogateescape")
