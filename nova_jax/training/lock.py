"""One job per run folder.

The main process holds a `flock` on `lock.json` while it runs. The kernel releases it however the process ends, so there
is nothing to clean up after a killed job; the text in the file only tells others who the owner is.
"""

import datetime
import fcntl
import json
import os
import pathlib
import socket
from typing import IO

from nova_jax.parallel import distributed


class RunLocked(RuntimeError):
    """Another living process owns the run folder."""


class RunLock:
    """Owns a run folder while the block runs; does nothing on processes other than the main one.

    On file systems without locks (some Lustre and bucket mounts) it cannot protect and does not stop the run.

    Raises:
        RunLocked: on entry, when a living process owns the folder; the message names process, host and time.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.path = pathlib.Path(directory) / "lock.json"
        self._file: IO[str] | None = None

    def __enter__(self) -> "RunLock":
        if not distributed.is_main():
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _read(file)
            file.close()
            raise RunLocked(
                f"{self.path.parent} is in use by {owner}: stop that job, or choose another run folder"
            ) from None
        except OSError:
            pass  # no locks on this file system
        started = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "started": started}))
        self._file = file
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file is not None:
            _write(self._file, "")
            self._file.close()
            self._file = None


def _read(file: IO[str]) -> str:
    file.seek(0)
    try:
        owner = json.loads(file.read())
        return f"process {owner['pid']} on {owner['host']}, started {owner['started']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
