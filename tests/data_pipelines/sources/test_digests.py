import hashlib
import os
import shutil
import time

import pytest

from data_pipelines.sources import digests


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """A memory of this test's own."""
    monkeypatch.setattr(digests, "MEMORY", str(tmp_path / "memory"))
    digests._recall.cache_clear()
    yield tmp_path / "memory"
    digests._recall.cache_clear()


@pytest.fixture
def reads(monkeypatch):
    """The names of the files whose bytes were read."""
    names, read = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, kind: names.append(file.name) or read(file, kind))
    return names


def settle(monkeypatch):
    """Lets an hour pass."""
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)


def test_a_digest_is_that_of_all_bytes(tmp_path):
    (tmp_path / "a").write_bytes(bytes(1000) + b"x" + bytes(1_000_000))
    assert digests.digests([tmp_path / "a"]) == [hashlib.sha256((tmp_path / "a").read_bytes()).hexdigest()]
    assert digests.digests([tmp_path / "nowhere", tmp_path]) == [digests.UNREADABLE] * 2
    assert digests.digests([]) == []


def test_a_change_in_place_is_noticed_however_soon_and_with_the_old_time_of_modification(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("a rad circle")
    seen, before = set(), path.stat()
    for text in ("a rad circle", "a red circle", "a rid circle"):
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        seen.add(digests.digests([path])[0])
    settle(monkeypatch)
    seen.add(digests.digests([path])[0])
    path.write_text("a rod circle")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    seen.add(digests.digests([path])[0])
    assert len(seen) == 4


def test_what_has_not_changed_is_read_once(tmp_path, monkeypatch, reads):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    settle(monkeypatch)
    first = digests.digests(paths)
    assert len(reads) == 3
    assert digests.digests(paths) == first
    assert len(reads) == 3
    paths[1].write_text("B")
    assert digests.digests(paths) != first
    assert reads[3:] == [str(paths[1])]


def test_what_took_long_is_remembered_by_the_next_process(tmp_path, monkeypatch, memory, reads):
    (tmp_path / "a").write_text("a")
    settle(monkeypatch)
    quick = digests.digests([tmp_path / "a"])
    assert not memory.exists()
    monkeypatch.setattr(digests, "KEPT_SECONDS", 0.0)
    digests._recall.cache_clear()  # as in another process
    digests.digests([tmp_path / "a"])
    assert len(reads) == 2
    digests._recall.cache_clear()
    assert digests.digests([tmp_path / "a"]) == quick
    assert len(reads) == 2
    (stored,) = memory.iterdir()
    stored.write_text("[" * 100_000)
    digests._recall.cache_clear()
    assert digests.digests([tmp_path / "a"]) == quick
    assert len(reads) == 3


def test_a_memory_that_cannot_be_written_is_said_and_nothing_else(tmp_path, monkeypatch, memory, caplog):
    (tmp_path / "a").write_text("a")
    memory.write_text("a file where the folder should be")
    settle(monkeypatch)
    monkeypatch.setattr(digests, "KEPT_SECONDS", 0.0)
    assert digests.digests([tmp_path / "a"]) == [hashlib.sha256(b"a").hexdigest()]
    assert "digests cannot be kept" in caplog.text


def test_a_fingerprint_knows_names_content_order_and_choices_but_not_the_folder(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    files = [str(folder / name) for name in ("a", "b")]
    for file in files:
        shutil.copy(__file__, file)
    first = digests.fingerprint(files, "x")
    moved = shutil.copytree(folder, tmp_path / "two")
    assert digests.fingerprint([os.path.join(moved, name) for name in ("a", "b")], "x") == first
    others = [
        digests.fingerprint(files[::-1], "x"),
        digests.fingerprint(files, "y"),
        digests.fingerprint(files[:1], "x"),
    ]
    (folder / "b").write_text("b")
    others.append(digests.fingerprint(files, "x"))
    assert len({first, *others}) == 5
