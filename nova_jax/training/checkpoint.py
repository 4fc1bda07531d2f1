"""Checkpoints that are either right or refused.

Orbax writes the arrays (sharded, in the background, committed by a rename). It does not notice a flipped bit in array
data when reading, nor does it fall back to an older checkpoint. So a checkpoint counts as committed only once it holds

    manifest.sha256      `# N files`, then a line `digest  path` for each of them, in the format of `sha256sum --check`

written by the main process after the rename, and every restore recomputes the digests of the files that it names: of
several processes each hashes the files that it wrote. What the manifest does not name, such as the .DS_Store of a file
browser, does not matter. The newest checkpoint that agrees is used; damaged ones on the way are renamed and reported,
never deleted. Reading an older one than the newest logs a warning.

    checkpoints/00001000/...                  committed
    checkpoints/00001000.damaged/...          set aside: some file differs from its manifest
    checkpoints/00001000.incomplete/...       set aside: the process died between commit and manifest

This is the only module that knows Orbax.
"""

import concurrent.futures
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from orbax.checkpoint import v1 as ocp

from nova_jax import atomic
from nova_jax.parallel import distributed, rules
from nova_jax.types import Params, TrainState

MANIFEST = "manifest.sha256"
COMMITTED = re.compile(r"\d{8,}")
UNFINISHED = re.compile(r"\d{8,}\.(orbax-checkpoint-tmp.*|deleting)")
ASIDE = re.compile(r"\d{8,}\.(damaged|incomplete)(-\d+)?")
HEAD = re.compile(r"# (\d+) files\n")  # manifests of earlier versions have none
WRITER = re.compile(r"ocdbt\.process_(\d+)/")  # in the path of a file: which process wrote it
LINE = re.compile(r"([0-9a-f]{64})  (.+)\n")
STRAY = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini")  # what file browsers leave, and change, anywhere
NONE, DAMAGED = -1, -2  # in place of a step, agreed on by all processes

logger = logging.getLogger(__name__)


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message says which, why and what to do."""


class Restored(NamedTuple):
    """A verified checkpoint: its state on the devices, what was saved with it, and what was found on the way."""

    step: int
    state: TrainState
    metadata: dict[str, Any]
    notes: tuple[str, ...]


class Checkpoints:
    """The checkpoints of one run: saved in the background, verified when read, the newest ones kept.

    Use it as a context manager, or call `wait()` before the program ends.

    Args:
        directory: created when missing; shared by all processes.
        keep: how many of the newest to keep.
        keep_every: also keep every checkpoint whose step is a multiple of this.
        metadata: JSON-able values stored with every checkpoint, such as a fingerprint of the config.
        committed: called by the main process, in the background, after each commit.

    Attributes:
        metadata: the same; what is changed here is stored with the checkpoints that follow.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep: int = 2,
        keep_every: int | None = None,
        metadata: Mapping[str, Any] | None = None,
        committed: Callable[[], None] = lambda: None,
    ) -> None:
        if keep < 1 or (keep_every is not None and keep_every < 1):
            raise ValueError(f"keep and keep_every must be at least 1, got {keep} and {keep_every}")
        self.directory = pathlib.Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keep, self._keep_every, self.metadata = keep, keep_every, dict(metadata or {})
        self._committed = committed
        self._background = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: concurrent.futures.Future | None = None

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def steps(self) -> list[int]:
        """Steps of the committed checkpoints, oldest first; their digests are not checked."""
        return sorted(int(path.name) for path in self._folders(COMMITTED) if (path / MANIFEST).is_file())

    def save(self, step: int, state: TrainState, metadata: Mapping[str, Any]) -> None:
        """Starts writing; returns as soon as the state may change. Waits for the checkpoint before this one.

        Raises:
            CheckpointError: not enough free space, or the checkpoint before this one failed.
        """
        self._finish()
        _check_space(self.directory, state)
        path = self._path(step)
        if (path / MANIFEST).is_file():
            raise CheckpointError(f"{path} exists already: a run continues from its newest checkpoint, not behind it")
        response = ocp.save_async(str(path), state, overwrite=True, custom_metadata={**self.metadata, **metadata})
        self._pending = self._background.submit(self._commit, response, step)

    def wait(self) -> None:
        """Blocks until the last checkpoint is committed, on every process."""
        self._finish()
        distributed.barrier("nova_jax checkpoint")

    def close(self) -> None:
        """Finishes the checkpoint being written and releases the background thread."""
        try:
            self._finish()
        finally:
            self._background.shutdown()

    def restore(self, abstract_state: TrainState) -> Restored | None:
        """Reads the newest checkpoint whose files are intact; None when there has never been one.

        Call it once, before the first `save`. The main process verifies and cleans up.

        Args:
            abstract_state: shapes, dtypes and shardings wanted, for any number of devices; see `step.plan`.

        Raises:
            CheckpointError: there are checkpoints and all are damaged (they are listed), or the newest intact one does
                not fit `abstract_state`.
        """
        notes: list[str] = []
        step = self._newest_intact(notes)
        if step == DAMAGED:
            listing = "\n  ".join(notes) or "(listed by the main process)"
            raise CheckpointError(
                f"every checkpoint in {self.directory} is damaged:\n  {listing}\n"
                "Restore one from a backup, or choose another run folder to start from scratch."
            )
        if step == NONE:
            return None
        path = self._path(step)
        metadata: Any = ocp.metadata(str(path)).custom_metadata
        return Restored(step, _load(path, abstract_state), dict(metadata or {}), tuple(notes))

    def _newest_intact(self, notes: list[str]) -> int:
        """The newest checkpoint that agrees with its manifest; the main process sets newer ones aside and says so."""
        is_main = distributed.is_main()
        if is_main:
            self._clear(notes)
        for step in reversed(json.loads(distributed.gather("checkpoints", json.dumps(self.steps()))[0])):
            parts = distributed.gather("checkpoint faults", json.dumps(differences(self._path(step), _is_mine)))
            if not (faults := list(dict.fromkeys(fault for part in parts for fault in json.loads(part)))):
                return step
            if is_main:
                notes.append(f"{_set_aside(self._path(step), 'damaged')}: {'; '.join(faults)}")
        damaged = [path for path in self._folders(ASIDE) if ".damaged" in path.name] if is_main else []
        notes += [f"{path}: damaged before" for path in damaged if not any(str(path) in note for note in notes)]
        return distributed.agree(DAMAGED if damaged else NONE)

    def _clear(self, notes: list[str]) -> None:
        """Removes what was never whole, and sets aside what was not committed."""
        for path in self._folders(UNFINISHED):
            shutil.rmtree(path)
        for path in self._folders(COMMITTED):
            if not (path / MANIFEST).is_file():
                notes.append(f"{_set_aside(path, 'incomplete')}: the run ended while it was being saved")

    def _commit(self, response: Any, step: int) -> None:
        """Runs in the background, on every process: waits for all, and joins what each has hashed."""
        response.result()
        distributed.gather("checkpoint written", "")  # and renamed by the main process
        parts = distributed.gather("checkpoint digests", _hash(self._path(step), _is_mine))
        if distributed.is_main():
            _write_manifest(self._path(step), "".join(parts))
            self._prune()
            self._committed()

    def _prune(self) -> None:
        """Deletes old checkpoints, each by a rename first: a folder with a manifest is always whole."""
        steps = self.steps()
        for step in steps[: -self._keep]:
            if self._keep_every is None or step % self._keep_every:
                doomed = self._path(step).rename(self._path(step).with_suffix(".deleting"))
                shutil.rmtree(doomed)

    def _finish(self) -> None:
        pending, self._pending = self._pending, None
        if pending is None:
            return
        try:
            pending.result()
        except Exception as error:
            raise CheckpointError(
                f"saving to {self.directory} failed; older checkpoints are intact: {error}"
            ) from error

    def _path(self, step: int) -> pathlib.Path:
        return self.directory / f"{step:08d}"

    def _folders(self, pattern: re.Pattern[str]) -> list[pathlib.Path]:
        return sorted(path for path in self.directory.iterdir() if pattern.fullmatch(path.name))


def read_ema(
    directory: str | os.PathLike[str], *, step: int | None = None, mesh: jax.sharding.Mesh | None = None
) -> tuple[int, Params]:
    """The EMA parameters alone, of the newest intact checkpoint or of `step`; changes nothing in the folder.

    Where the newest checkpoint is not the one, a warning is logged: which it is instead, and why.

    Args:
        directory: as given to `Checkpoints`; a run may be writing to it.
        step: a committed step; None: the newest whose files agree with their manifest.
        mesh: where to put them, by `parallel.rules`; None: on the first device of this process.

    Raises:
        CheckpointError: there is no such checkpoint, or none that is intact.
    """
    path = _choose(pathlib.Path(directory).absolute(), step)
    saved: Any = ocp.metadata(str(path)).metadata
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), saved["ema"])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = rules.shardings(shapes, mesh) if mesh is not None else jax.tree.map(lambda _: device, shapes)
    target = jax.tree.map(lambda _: ..., saved)  # leaves that are not read
    target["ema"] = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), shapes, where)
    return int(path.name), ocp.load(str(path), target)["ema"]


def origin(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The newest intact checkpoint as a later one remembers it: its path, and the digest of its manifest."""
    path = _choose(pathlib.Path(directory).absolute(), None)
    return {"checkpoint": str(path), "sha256": _digest(path / MANIFEST)}


def _choose(directory: pathlib.Path, step: int | None) -> pathlib.Path:
    """The folder of the newest intact checkpoint, or of `step`; logs why newer ones were passed over."""
    found = sorted(path.parent for path in directory.glob(f"*/{MANIFEST}") if COMMITTED.fullmatch(path.parent.name))
    notes = []
    for path in reversed(found if step is None else [path for path in found if int(path.name) == step]):
        if faults := differences(path):
            notes.append(f"{path} is damaged: {'; '.join(faults)}")
            continue
        notes += _newer(directory, path) if step is None else []
        if notes:
            logger.warning("reading step %d, not the newest: %s", int(path.name), "; ".join(notes))
        return path
    steps = ", ".join(str(int(path.name)) for path in found) or "none"
    what = "no intact checkpoint" if step is None else f"no intact checkpoint of step {step}"
    raise CheckpointError(
        f"{directory} holds {what} (committed steps: {steps}); let the run reach its next save"
        + "".join(f"\n  {note}" for note in notes)
    )


def _newer(directory: pathlib.Path, chosen: pathlib.Path) -> list[str]:
    """The folders of later steps that were set aside, or that the run has not committed."""
    notes = []
    for path in sorted(directory.iterdir(), reverse=True):
        is_aside, is_open = ASIDE.fullmatch(path.name), COMMITTED.fullmatch(path.name)
        if not (is_aside or is_open) or int(path.name.partition(".")[0]) <= int(chosen.name):
            continue
        if is_aside:
            notes.append(f"{path} was set aside")
        elif not (path / MANIFEST).is_file():
            notes.append(f"{path} is not whole: it has no {MANIFEST}")
    return notes


def differences(path: pathlib.Path, is_mine: Callable[[str], bool] = lambda name: True) -> list[str]:
    """What is wrong with a checkpoint: files of its manifest that changed or vanished, or itself; empty when intact.

    Args:
        path: of the checkpoint.
        is_mine: which of the files to look at.
    """
    claimed = (path / MANIFEST).read_bytes().decode(errors="replace")
    lines = claimed.splitlines(keepends=True)
    head = HEAD.fullmatch(lines[0]) if lines else None
    lines = lines[1:] if head else lines
    named = [found[2] for line in lines if (found := LINE.fullmatch(line))]
    if not lines or len(named) < len(lines) or (head and int(head[1]) != len(named)):
        return [f"{MANIFEST} changed"]
    mine = {name: line for name, line in zip(named, lines, strict=True) if is_mine(name)}
    lost = [name for name in mine if not (path / name).is_file()]
    kept = [name for name in mine if name not in lost]
    actual = _digests(path, kept).splitlines(keepends=True)
    changed = [name for name, line in zip(kept, actual, strict=True) if line != mine[name]]
    return [f"{name} changed" for name in changed] + [f"{name} is missing" for name in lost]


def _is_mine(name: str) -> bool:
    """Whether this process hashes a file: what it, or one of its number modulo the processes there are, wrote."""
    index, count = distributed.process_place()
    writer = WRITER.search(name)
    return (int(writer[1]) if writer else 0) % count == index


def _hash(path: pathlib.Path, is_mine: Callable[[str], bool]) -> str:
    """Lines of the manifest, for some of the files."""
    files = [file for file in path.rglob("*") if file.is_file() and not STRAY.fullmatch(file.name)]
    names = sorted(file.relative_to(path).as_posix() for file in files if file != path / MANIFEST)
    return _digests(path, [name for name in names if is_mine(name)])


def _digests(path: pathlib.Path, names: Sequence[str]) -> str:
    """A line for each file, as `sha256sum` writes it."""
    with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        digests = list(pool.map(_digest, (path / name for name in names)))  # hashing releases the GIL
    return "".join(f"{digest}  {name}\n" for digest, name in zip(digests, names, strict=True))


def _digest(file: pathlib.Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_manifest(path: pathlib.Path, digests: str) -> None:
    lines = sorted(digests.splitlines(keepends=True), key=lambda line: line[66:])
    atomic.write(path / MANIFEST, f"# {len(lines)} files\n{''.join(lines)}")


def _set_aside(path: pathlib.Path, reason: str) -> pathlib.Path:
    """Renames a checkpoint out of the way, to a name that is free."""
    names = [f"{path.name}.{reason}"] + [f"{path.name}.{reason}-{i}" for i in range(2, 1000)]
    return path.rename(next(path.with_name(name) for name in names if not path.with_name(name).exists()))


def _check_space(directory: pathlib.Path, state: TrainState) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise CheckpointError(
            f"a checkpoint needs up to {needed:,} bytes and {directory} has {free:,} free; older ones are intact. "
            "Free some space or keep fewer checkpoints, then run the same command again."
        )


def _load(path: pathlib.Path, abstract_state: TrainState) -> TrainState:
    try:
        return ocp.load(str(path), abstract_state)
    except Exception as error:
        if not (misfits := _misfits(path, abstract_state)):
            raise CheckpointError(f"{path} is intact but cannot be read: {error}") from error
        shown = "\n  ".join(misfits[:10] + [f"... and {len(misfits) - 10} more"] * (len(misfits) > 10))
        raise CheckpointError(
            f"{path} holds another model or optimizer than this run:\n  {shown}\n"
            "Use the config it was saved with, or another run folder."
        ) from error


def _misfits(path: pathlib.Path, abstract_state: TrainState) -> list[str]:
    """Where saved and wanted shapes differ."""
    saved, wanted = _shapes(ocp.metadata(str(path)).metadata), _shapes(abstract_state)
    names = sorted(saved.keys() | wanted.keys())
    return [
        f"{name}: saved {saved.get(name, 'nothing')}, this run has {wanted.get(name, 'nothing')}"
        for name in names
        if saved.get(name) != wanted.get(name)
    ]


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {rules.name_of(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, "shape")}
