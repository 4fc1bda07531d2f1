"""Pointers of git-lfs: the few lines of text that a clone without git-lfs holds in place of a large file."""

import os

MAX_BYTES = 1024  # a pointer is shorter (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md)
START = b"version https://git-lfs.github.com/spec/"
POINTER = (
    "a git-lfs pointer, not the file itself: run `git lfs pull` in the clone that it lies in (install git-lfs first), "
    "or download the file alone"
)


def is_pointer(data: bytes) -> bool:
    """Whether the bytes of a file, or the first of them, are those of a pointer."""
    return data.startswith(START)


def is_pointer_file(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a pointer; large files are not opened, nor what gives its bytes only once (a pipe)."""
    if not os.path.isfile(path) or os.path.getsize(path) >= MAX_BYTES:
        return False
    with open(path, "rb") as file:
        return is_pointer(file.read(len(START)))
