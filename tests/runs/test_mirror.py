"""A run that is copied to a bucket goes on from there, to the bit, on a machine that has nothing of it."""

import dataclasses
import json
import shutil

import fsspec
import numpy as np
import pytest

from nova_jax import experiment, generation
from nova_jax.runs import mirror
from nova_jax.training import checkpoint
from tests import tiny_run

URL = "memory://bucket/runs/tiny"


@pytest.fixture
def bucket():
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture
def run(once, tmp_path):
    """A copy of the trained tiny run."""
    return shutil.copytree(once("tiny_run", tiny_run.train), tmp_path / "run")


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_what_is_fetched_is_what_was_copied(run, bucket, tmp_path):
    mirror.push(run, URL)
    mirror.fetch(URL, tmp_path / "other")
    newest = max(path.name for path in (run / "checkpoints").iterdir())
    expected = {n for n in names(run) if n != "lock.json" and (not n.startswith("checkpoints/") or newest in n)}
    assert names(tmp_path / "other") == expected
    assert not checkpoint.differences(tmp_path / "other" / "checkpoints" / newest)


def test_only_what_is_new_is_copied_and_what_is_gone_goes(run, bucket, monkeypatch):
    mirror.push(run, URL)
    put, put_file = [], type(bucket).put_file
    monkeypatch.setattr(
        type(bucket), "put_file", lambda self, here, there, *rest: put.append(there) or put_file(self, here, there)
    )
    oldest = min((run / "checkpoints").iterdir())
    shutil.rmtree(oldest)
    with (run / "log.jsonl").open("a") as log:
        log.write("{}\n")
    mirror.push(run, URL)
    assert {name.rpartition("/")[2] for name in put} == {"config.json", "log.jsonl", "events.jsonl"}
    assert bucket.cat("/bucket/runs/tiny/log.jsonl").endswith(b"{}\n")
    assert not bucket.find(f"/bucket/runs/tiny/checkpoints/{oldest.name}")


def test_a_checkpoint_without_its_manifest_is_neither_copied_nor_fetched(run, bucket, tmp_path):
    older, newest = sorted((run / "checkpoints").iterdir())
    mirror.push(run, URL)
    bucket.rm_file(f"/bucket/runs/tiny/checkpoints/{newest.name}/{checkpoint.MANIFEST}")
    mirror.fetch(URL, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other" / "checkpoints").iterdir()] == [older.name]


def test_a_checkpoint_that_is_not_the_one_in_the_bucket_replaces_it(run, bucket, tmp_path):
    mirror.push(run, URL)
    newest = max((run / "checkpoints").iterdir())
    (newest / "another").write_text("file")
    (newest / checkpoint.MANIFEST).write_text("# 0 files\n")
    older = min((run / "checkpoints").iterdir())
    older.rename(older.with_suffix(".damaged"))
    mirror.push(run, URL)
    found = bucket.find(f"/bucket/runs/tiny/checkpoints/{newest.name}")
    assert {name.rpartition("/")[2] for name in found} >= {"another"}
    assert bucket.cat(f"/bucket/runs/tiny/checkpoints/{newest.name}/{checkpoint.MANIFEST}") == b"# 0 files\n"
    assert not bucket.find(f"/bucket/runs/tiny/checkpoints/{older.name}")


def test_a_name_that_leads_out_of_the_folder_is_refused(run, bucket, tmp_path, monkeypatch):
    mirror.push(run, URL)
    sizes = mirror._sizes
    monkeypatch.setattr(mirror, "_sizes", lambda *where: sizes(*where) | {"samples/../../outside": 1})
    with pytest.raises(ValueError, match="leads out of the run folder"):
        mirror.fetch(URL, tmp_path / "other")


def test_a_url_without_a_run_is_refused(bucket, tmp_path):
    bucket.pipe("/bucket/runs/tiny/readme", b"")
    assert not mirror.holds_run(URL)
    with pytest.raises(FileNotFoundError, match="memory://bucket/runs/tiny is not a run folder"):
        mirror.fetch(URL, tmp_path / "other")


def test_a_run_in_a_bucket_is_loaded_from_its_url(run, bucket, tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "FETCHED", str(tmp_path / "fetched"))
    mirror.push(run, URL)
    there, here = generation.load_run(URL), generation.load_run(run)
    assert there.step == here.step == 4
    np.testing.assert_array_equal(there.params["dit"]["head"]["kernel"], here.params["dit"]["head"]["kernel"])


def bits(run_dir):
    return [json.loads(line)["loss_bits"] for line in (run_dir / "log.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_a_run_goes_on_to_the_bit_where_nothing_but_the_bucket_is_left(bucket, tmp_path):
    config = dataclasses.replace(tiny_run.make_config(tmp_path), preview=None)
    experiment.run(dataclasses.replace(config, run_dir=str(tmp_path / "whole")))
    first = dataclasses.replace(config, steps=2, mirror=URL, optimizer=config.optimizer.ending_at(4))
    experiment.run(first)
    shutil.rmtree(tmp_path / "run")
    resumed = experiment.run(dataclasses.replace(config, mirror=URL))
    assert int(resumed.state.step) == 4
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert f"fetched from {URL}" in events
    assert "resumed at step 2 of 4" in events
    assert names(tmp_path / "run") - {"lock.json"} >= {"config.json", "log.jsonl"}
    assert bucket.cat("/bucket/runs/tiny/log.jsonl") == (tmp_path / "run" / "log.jsonl").read_bytes()


@pytest.mark.long
def test_a_bucket_that_cannot_be_written_to_does_not_end_the_run(bucket, tmp_path, monkeypatch):
    push, calls = mirror.push, []

    def fail_first(*where):
        calls.append(where)
        if len(calls) == 1:
            raise RuntimeError("quota exceeded")
        push(*where)

    monkeypatch.setattr(mirror, "push", fail_first)
    experiment.run(dataclasses.replace(tiny_run.make_config(tmp_path), preview=None, mirror=URL))
    assert "memory://bucket/runs/tiny was not written to" in (tmp_path / "run" / "events.jsonl").read_text()
    assert mirror.holds_run(URL)
