"""A run folder and its copy in a bucket: `mirror=gs://bucket/runs/NAME` of a run, or any other URL that fsspec knows.

A run works in a folder of this machine, where files can be locked, appended to and renamed, which a bucket cannot.
After every checkpoint process 0 copies what is new: `push`. A run whose folder is not here begins with `fetch`, and
then resumes as ever; so a machine may be lost with all of its disks. A checkpoint is copied with its manifest last, and
without a manifest it counts as none, in the bucket as in the folder: a copy that was interrupted is never read. Its
digests are checked when it is restored, so what changed in the bucket is noticed like what changed on a disk.

`gs://` needs the package gcsfs and `s3://` s3fs (`pip install 'nova-jax[gcs]'`, `[s3]`), which find the credentials.
"""

import hashlib
import pathlib
import re
from collections.abc import Iterable
from typing import Any

import fsspec

from nova_jax import atomic, compilation_cache
from nova_jax.runs import record
from nova_jax.training import checkpoint

FETCHED = "~/.cache/nova_jax/runs"
CHECKPOINT = re.compile(r"checkpoints/(\d{8,})/.+")
UNCHANGING = re.compile(r"(checkpoints|codec|samples)/.+")  # files that nobody writes to again
LOCAL = ("lock.json", compilation_cache.FOLDER, "programs")  # what belongs to this machine


def push(run_dir: str | pathlib.Path, url: str) -> None:
    """Copies what the bucket lacks: whole checkpoints, and files beside them; removes checkpoints older than all here.

    Raises:
        OSError: the bucket cannot be written to.
    """
    folder = pathlib.Path(run_dir)
    files, root = _open(url)
    here, there = {name: path.stat().st_size for name, path in _files(folder)}, _sizes(files, root)
    for step, names in _checkpoints(here).items():
        manifest = f"checkpoints/{step}/{checkpoint.MANIFEST}"
        if manifest in there and files.cat_file(f"{root}/{manifest}") == (folder / manifest).read_bytes():
            continue
        _remove(files, root, step, there)
        for name in sorted(names, key=_manifest_last):
            _put(files, folder, root, name)
    oldest = min(_checkpoints(here), default="")
    for step in {found[1] for name in there if (found := CHECKPOINT.fullmatch(name)) and found[1] < oldest}:
        _remove(files, root, step, there)
    for name in here:
        is_same = UNCHANGING.fullmatch(name) and there.get(name) == here[name]
        if not name.startswith("checkpoints/") and not is_same:
            _put(files, folder, root, name)


def holds_run(url: str) -> bool:
    """Whether there is a run folder at a URL."""
    files, root = _open(url)
    return files.exists(f"{root}/{record.FILE}")


def local(run_dir: str | pathlib.Path) -> pathlib.Path:
    """A run folder of this machine; one at a URL is fetched first, into `FETCHED`, as far as it is not there yet."""
    if "://" not in str(run_dir):
        return pathlib.Path(run_dir)
    url = str(run_dir).rstrip("/")
    place = f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:8]}"
    folder = pathlib.Path(FETCHED).expanduser() / place
    fetch(url, folder)
    return folder


def fetch(url: str, run_dir: str | pathlib.Path) -> None:
    """Copies the newest checkpoint and all files beside the checkpoints here, config.json last.

    What is here of the same run already, whole, is not copied again.

    Raises:
        FileNotFoundError: there is no run folder at the URL.
        ValueError: a name there leads out of the run folder.
        OSError: the bucket cannot be read.
    """
    folder = pathlib.Path(run_dir)
    files, root = _open(url)
    there = _sizes(files, root)
    if record.FILE not in there:
        raise FileNotFoundError(f"{url} is not a run folder: it has no {record.FILE}")
    if wrong := [name for name in there if ".." in name.split("/")]:
        raise ValueError(f"{url} holds {wrong[0]}, which leads out of the run folder: remove it there")
    config = folder / record.FILE
    is_same = config.is_file() and config.read_bytes() == files.cat_file(f"{root}/{record.FILE}")
    checkpoints = _checkpoints(there)
    newest = checkpoints[max(checkpoints)] if checkpoints else []
    beside = [name for name in there if not name.startswith("checkpoints/")]
    for name in sorted([*newest, *beside], key=lambda name: (name == record.FILE, _manifest_last(name))):
        path = folder / name
        if is_same and UNCHANGING.fullmatch(name) and path.is_file() and path.stat().st_size == there[name]:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as partial:
            files.get_file(f"{root}/{name}", str(partial))


def _open(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The store, as it is now, and the folder in it."""
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()
    return files, root.rstrip("/")


def _put(files: fsspec.AbstractFileSystem, folder: pathlib.Path, root: str, name: str) -> None:
    files.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
    files.put_file(str(folder / name), f"{root}/{name}")


def _remove(files: fsspec.AbstractFileSystem, root: str, step: str, there: dict[str, int]) -> None:
    """Removes a checkpoint from the bucket, its manifest first."""
    names = [name for name in there if name.startswith(f"checkpoints/{step}/")]
    for name in sorted(names, key=_manifest_last, reverse=True):
        files.rm_file(f"{root}/{name}")


def _manifest_last(name: str) -> bool:
    return name.endswith(f"/{checkpoint.MANIFEST}")


def _files(folder: pathlib.Path) -> Iterable[tuple[str, pathlib.Path]]:
    """The files of a run folder that are copied, by name."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/")[0] not in LOCAL and not name.endswith(".partial"):
            yield name, path


def _sizes(files: fsspec.AbstractFileSystem, root: str) -> dict[str, int]:
    """Names and sizes of the files in a folder of a bucket; none where there is no such folder."""
    found: Any = files.find(root, detail=True) if files.exists(root) else {}
    return {name[len(root) :].lstrip("/"): info["size"] for name, info in found.items()}


def _checkpoints(names: Iterable[str]) -> dict[str, list[str]]:
    """The files of each checkpoint that has a manifest, by its step."""
    steps: dict[str, list[str]] = {}
    for name in names:
        if found := CHECKPOINT.fullmatch(name):
            steps.setdefault(found[1], []).append(name)
    return {step: found for step, found in steps.items() if any(map(_manifest_last, found))}
