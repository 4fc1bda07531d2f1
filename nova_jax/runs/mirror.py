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

import fsspec

from nova_jax import atomic, compilation_cache
from nova_jax.runs import record
from nova_jax.training import checkpoint

FETCHED = "~/.cache/nova_jax/runs"
CHECKPOINT = re.compile(r"checkpoints/(\d{8,})/.+")
UNCHANGING = re.compile(r"(checkpoints|codec|samples)/.+")  # files that nobody writes to again
LOCAL = ("lock.json", compilation_cache.FOLDER, "programs")  # what belongs to this machine


def push(run_dir: str | pathlib.Path, url: str) -> None:
    """Copies what the bucket lacks: whole checkpoints, and files beside them; checkpoints that are gone here go there.

    Raises:
        OSError: the bucket cannot be written to.
    """
    folder = pathlib.Path(run_dir)
    here = {name: path.stat().st_size for name, path in _files(folder)}
    files, root = fsspec.core.url_to_fs(url)
    there = _sizes(files, root)
    wanted = [name for name in _whole(here) if not (UNCHANGING.fullmatch(name) and there.get(name) == here[name])]
    for name in sorted(wanted, key=lambda name: name.endswith(checkpoint.MANIFEST)):
        files.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        files.put_file(str(folder / name), f"{root}/{name}")
    gone = [name for name in there if CHECKPOINT.fullmatch(name) and name not in here]
    for name in sorted(gone, key=lambda name: not name.endswith(checkpoint.MANIFEST)):
        files.rm_file(f"{root}/{name}")


def holds_run(url: str) -> bool:
    """Whether there is a run folder at a URL."""
    files, root = fsspec.core.url_to_fs(url)
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
    """Copies the newest checkpoint and all files beside the checkpoints here, config.json last; those here stay.

    Raises:
        FileNotFoundError: there is no run folder at the URL.
        ValueError: a name there leads out of the run folder.
        OSError: the bucket cannot be read.
    """
    folder = pathlib.Path(run_dir)
    files, root = fsspec.core.url_to_fs(url)
    there = _whole(_sizes(files, root))
    if record.FILE not in there:
        raise FileNotFoundError(f"{url} is not a run folder: it has no {record.FILE}")
    newest = max((found[1] for name in there if (found := CHECKPOINT.fullmatch(name))), default="")
    for name in sorted(there, key=lambda name: (name == record.FILE, name.endswith(checkpoint.MANIFEST))):
        found, path = CHECKPOINT.fullmatch(name), folder / name
        if ".." in path.parts:
            raise ValueError(f"{url} holds {name}, which leads out of the run folder: remove it there")
        if (found and found[1] != newest) or (path.is_file() and path.stat().st_size == there[name]):
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as partial:
            files.get_file(f"{root}/{name}", str(partial))


def _files(folder: pathlib.Path) -> Iterable[tuple[str, pathlib.Path]]:
    """The files of a run folder that are copied, by name."""
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name.split("/")[0] not in LOCAL and not name.endswith(".partial"):
            yield name, path


def _sizes(files: fsspec.AbstractFileSystem, root: str) -> dict[str, int]:
    """Names and sizes of the files in a bucket; none where there is no such folder."""
    files.invalidate_cache()
    found = files.find(root, detail=True) if files.exists(root) else {}
    return {name[len(root) :].lstrip("/"): info["size"] for name, info in found.items()}


def _whole(sizes: dict[str, int]) -> dict[str, int]:
    """The files without those of checkpoints that have no manifest, or that were set aside."""
    steps = {found[1] for name in sizes if (found := CHECKPOINT.fullmatch(name)) and name.endswith(checkpoint.MANIFEST)}
    return {
        name: size
        for name, size in sizes.items()
        if not name.startswith("checkpoints/") or ((found := CHECKPOINT.fullmatch(name)) and found[1] in steps)
    }
