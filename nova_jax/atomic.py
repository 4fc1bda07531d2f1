"""Files that are there as a whole, or as they were before."""

import contextlib
import os
import pathlib
import secrets
from collections.abc import Iterator

Path = str | os.PathLike[str]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[pathlib.Path]:
    """A path to write to: the file there takes the name `path` when the block ends, and is removed when it fails."""
    partial = pathlib.Path(f"{os.fspath(path)}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write(path: Path, text: str) -> None:
    """Writes a text file in UTF-8; a reader sees the old or the new one, never a part."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
