"""Shards in a bucket are read as those on a disk are."""

import io
import tarfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from data_pipelines.sources import base, remote
from data_pipelines.sources.webdataset import WebDataset


def tar_of(*levels):
    """A tar of images of one gray each, with captions."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as file:
        for level in levels:
            image = io.BytesIO()
            Image.new("RGB", (4, 4), (level,) * 3).save(image, "PNG")
            for suffix, content in (("png", image.getvalue()), ("txt", f"gray {level}".encode())):
                entry = tarfile.TarInfo(f"{level:03d}.{suffix}")
                entry.size = len(content)
                file.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A bucket in memory with two shards; copies go to `tmp_path`."""
    monkeypatch.setattr(remote, "FOLDER", str(tmp_path / "copies"))
    files = fsspec.filesystem("memory")
    for name, levels in (("a-000", (1, 2)), ("a-001", (3,))):
        files.pipe(f"/bucket/train/{name}.tar", tar_of(*levels))
    yield files
    files.rm("/bucket", recursive=True)


def captions(source):
    return [source[i]["caption"] for i in range(len(source))]


@pytest.mark.parametrize("paths", ["train", "train/*.tar", "train/a-{000..001}.tar"])
def test_a_folder_a_glob_and_a_range_name_the_shards_of_a_bucket(bucket, paths):
    source = WebDataset(f"memory://bucket/{paths}")
    assert captions(source) == ["gray 1", "gray 2", "gray 3"]
    np.testing.assert_array_equal(source[2]["pixels"], 3)


def test_a_shard_is_copied_once_and_again_when_it_changes(bucket, monkeypatch):
    got = []
    get = type(bucket).get_file
    monkeypatch.setattr(type(bucket), "get_file", lambda self, name, *rest: got.append(name) or get(self, name, *rest))
    first = WebDataset("memory://bucket/train").fingerprint()
    assert WebDataset("memory://bucket/train").fingerprint() == first
    assert len(got) == 2
    bucket.pipe("/bucket/train/a-001.tar", tar_of(4))
    changed = WebDataset("memory://bucket/train")
    assert captions(changed)[-1] == "gray 4"
    assert changed.fingerprint() != first
    assert len(got) == 3


def test_the_same_shards_on_a_disk_have_the_same_fingerprint(bucket, tmp_path):
    bucket.get("/bucket/train/", str(tmp_path / "disk/"), recursive=True)
    assert WebDataset(str(tmp_path / "disk")).fingerprint() == WebDataset("memory://bucket/train").fingerprint()


def test_a_url_that_names_nothing_is_refused(bucket):
    for paths in ("memory://bucket/nothing", "memory://bucket/train/*.zip"):
        with pytest.raises(base.DatasetError, match="there is no file memory://bucket"):
            base.find_files(paths, ".tar")
