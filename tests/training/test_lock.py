"""Two jobs never share a run folder; a dead job does not block it."""

import json
import os
import subprocess
import sys

import pytest

from nova_jax.training import lock

HOLDER = """
import sys, time
from nova_jax.training import lock
with lock.RunLock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that owns the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_living_owner_is_named_and_a_killed_one_leaves_no_lock(tmp_path, holder):
    with (
        pytest.raises(lock.RunLocked, match=f"in use by process {holder.pid} on .*, started 20"),
        lock.RunLock(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    with lock.RunLock(tmp_path):
        assert json.loads((tmp_path / "lock.json").read_text())["pid"] == os.getpid()


def test_the_folder_is_free_again_after_the_block(tmp_path):
    for _ in range(2):
        with lock.RunLock(tmp_path), pytest.raises(lock.RunLocked), lock.RunLock(tmp_path):
            pass
    assert (tmp_path / "lock.json").read_text() == ""


def test_a_lock_file_torn_by_a_crash_is_taken_over(tmp_path):
    (tmp_path / "lock.json").write_text('{"pid": 12')
    with lock.RunLock(tmp_path):
        pass
