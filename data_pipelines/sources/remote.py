"""Files in a bucket or on a server: each is copied here whole before it is read, once.

    gs://bucket/train-{000..127}.tar      s3://bucket/train/*.parquet      https://host/a.array_record

fsspec knows how to reach them; `gs://` needs the package gcsfs and `s3://` s3fs, which also find the credentials. A
copy keeps its name, in a folder of `FOLDER` that is named after where it comes from and what the store says of it
(size, time, checksum): a file that changes there is copied anew. `FOLDER` may be deleted at any time.
"""

import hashlib
import os
import re

import fsspec

from nova_jax import atomic

FOLDER = "~/.cache/nova_jax/files"
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_remote(path: str) -> bool:
    """Whether a path is a URL."""
    return SCHEME.match(path) is not None


def fetch(url: str, suffix: str) -> list[str]:
    """The local copies of what a URL names: a file, a folder (every `*suffix` in it) or a glob; empty if nothing."""
    files, path = fsspec.core.url_to_fs(url)
    if "*" in path or "?" in path:
        found = files.glob(path)
    elif files.isdir(path):
        found = files.glob(f"{path.rstrip('/')}/*{suffix}")
    else:
        found = [path] if files.exists(path) else []
    return [_copy(files, url.partition("://")[0], name) for name in sorted(found)]


def _copy(files: fsspec.AbstractFileSystem, scheme: str, name: str) -> str:
    identity = hashlib.sha256(f"{scheme} {name} {files.ukey(name)}".encode()).hexdigest()
    copy = os.path.join(os.path.expanduser(FOLDER), identity[:16], name.rpartition("/")[2])
    if not os.path.exists(copy):
        os.makedirs(os.path.dirname(copy), exist_ok=True)
        with atomic.replacing(copy) as partial:
            files.get_file(name, os.fspath(partial))
    return copy
