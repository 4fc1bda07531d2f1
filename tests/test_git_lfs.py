"""Pointers of git-lfs, where the files of data sets and requests should be; those of weights: `weights/`."""

import pytest

from data_pipelines import images, sources
from nova_jax import git_lfs, tasks

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 4932\n"
SAID = "a git-lfs pointer, not the file itself: run `git lfs pull`"


def test_only_a_pointer_is_one(tmp_path):
    for data, expected in ((POINTER, True), (b"", False), (b"version 1", False), (POINTER + bytes(2000), False)):
        (tmp_path / "a").write_bytes(data)
        assert git_lfs.is_pointer_file(tmp_path / "a") == expected


def test_a_picture_of_a_request_says_so(tmp_path):
    (tmp_path / "a.png").write_bytes(POINTER)
    for read in (tasks.read_image, tasks.read_mask):
        with pytest.raises(tasks.InvalidRequest, match=rf"a\.png is {SAID}"):
            read(tmp_path / "a.png")


def test_a_picture_or_video_of_a_data_set_is_a_corrupt_record_that_says_so(tmp_path):
    for decode in (images.ON_WHITE, sources.VideoDecoder(size=(8, 8), frames=1)):
        name = f"a{decode.suffixes[0]}"
        (tmp_path / name).write_bytes(POINTER)
        (tmp_path / "a.txt").write_text("a caption")
        with pytest.raises(sources.CorruptRecord, match=rf"record {name}: {SAID}"):
            sources.Folder(tmp_path, decoder=decode)[0]


@pytest.mark.parametrize("kind", [sources.WebDataset, sources.Parquet])
def test_a_shard_is_refused(tmp_path, kind):
    suffix = {"WebDataset": "tar", "Parquet": "parquet"}[kind.__name__]
    (tmp_path / f"a.{suffix}").write_bytes(POINTER)
    for place in (tmp_path, tmp_path / f"a.{suffix}", tmp_path / f"*.{suffix}"):
        with pytest.raises(sources.DatasetError, match=rf"a\.{suffix} is {SAID}"):
            len(kind(str(place)))
