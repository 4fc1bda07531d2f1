import gzip
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from data_pipelines import images, sources
from data_pipelines.sources import webdataset


def test_samples_come_back_in_order_over_several_shards(emoji_like, pictures):
    source = sources.WebDataset(emoji_like)
    assert len(source) == 12
    for i, pixels in enumerate(pictures):
        np.testing.assert_array_equal(source[i]["pixels"], pixels[None])
        assert source[i]["caption"] == f"caption {i}"
        assert source[i]["key"] == f"{i:05d}"
    assert source[np.int64(-1)]["caption"] == "caption 11"
    with pytest.raises(IndexError):
        source[12]


def test_folder_glob_range_and_tuple_name_the_same_shards(emoji_like, tmp_path):
    for paths in (tmp_path, str(tmp_path / "*.tar"), str(tmp_path / "shard-{000..001}.tar"), emoji_like):
        assert [sample["key"] for sample in sources.WebDataset(paths)] == [f"{i:05d}" for i in range(12)]


def test_reading_a_sample_touches_only_its_bytes_and_extracts_nothing(emoji_like, tmp_path, monkeypatch):
    source = sources.WebDataset(emoji_like)
    with tarfile.open(emoji_like[0]) as tar:
        sizes = [tar.getmember(f"00003.{suffix}").size for suffix in ("png", "txt")]
    before, asked, pread = sorted(os.listdir(tmp_path)), [], os.pread
    len(source)
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: asked.append(size) or pread(fd, size, offset))
    assert source[3]["caption"] == "caption 3"
    assert asked == sizes
    assert sorted(os.listdir(tmp_path)) == before


def test_member_names_are_labels_and_never_paths(make_tar, png, pictures, tmp_path):
    names = ("../../evil", "/absolute/evil", "a/b/c", "dots.in.name")
    files = {f"{name}.{suffix}": data for name in names for suffix, data in (("png", png(pictures[0])), ("txt", b"x"))}
    source = sources.WebDataset(make_tar("a.tar", files))
    assert [sample["key"] for sample in source] == ["../../evil", "/absolute/evil", "a/b/c"]
    assert sorted(os.listdir(tmp_path)) == ["a.tar"]


def test_captions_may_lie_in_a_json_member(emoji_like):
    assert sources.WebDataset(emoji_like, caption="json:name")[7]["caption"] == "json name 7"
    assert sources.WebDataset(emoji_like, caption=None)[7]["caption"] == ""
    with pytest.raises(sources.CorruptRecord, match="no text under 'title'"):
        sources.WebDataset(emoji_like, caption="json:title")[0]


def test_json_that_is_no_caption_is_one_corrupt_record(make_tar, png, pictures):
    texts = (b'\xef\xbb\xbf{"text": "a heart"}', b'{"text": "half \\ud83d"}', b"[" * 100_000, b'{"text": "two"}')
    files = {f"{i}.json": text for i, text in enumerate(texts)} | {f"{i}.png": png(pictures[i]) for i in range(4)}
    source = sources.WebDataset(make_tar("a.tar", files), caption="json:text")
    assert [source[i]["caption"] for i in (0, 3)] == ["a heart", "two"]
    for index, reason in ((1, "half a character"), (2, "nested too deeply")):
        with pytest.raises(sources.CorruptRecord, match=reason):
            source[index]


def test_a_byte_order_mark_is_no_part_of_a_caption(make_tar, png, pictures):
    path = make_tar("a.tar", {"0.png": png(pictures[0]), "0.txt": b"\xef\xbb\xbfa heart\n"})
    assert sources.WebDataset(path)[0]["caption"] == "a heart"


def test_hidden_members_are_no_samples(make_tar, png, pictures):
    names = ("./0", "._0", "__MACOSX/0", ".ipynb_checkpoints/1", "a/.thumbnails/2", "a/3")
    files = {f"{name}.{end}": data for name in names for end, data in (("png", png(pictures[0])), ("txt", b"x"))}
    source = sources.WebDataset(make_tar("a.tar", files))
    assert [sample["key"] for sample in source] == ["./0", "a/3"]


def test_members_that_look_like_pictures_and_are_not_read_are_said(make_tar, png, pictures, tmp_path, caplog):
    picture = png(pictures[0])
    names = ("0.png", "0.seg.png", "0.txt", "v1.5 photo.jpg", "1.gif", "1.cls")
    files = {name: b"a" if name == "0.txt" else picture for name in names}
    path = make_tar("a.tar", files)
    for _ in range(2):  # scanned, and from the stored index
        assert len(sources.WebDataset(path, index_dir=str(tmp_path / "indices"))) == 1
        assert "3 files are left out, the first '0.seg.png'" in caplog.text
        caplog.clear()
    with pytest.raises(sources.DatasetError, match=r"no member has .* 1 files are left out, the first 'v1\.5 photo"):
        len(sources.WebDataset(make_tar("b.tar", {"v1.5 photo.png": picture, "v1.5 photo.txt": b"x"})))


def test_tars_in_a_folder_whose_name_is_not_utf8_are_indexed(emoji_like, tmp_path):
    folder = os.path.join(tmp_path, os.fsdecode(b"caf\xe9"))
    os.mkdir(folder)
    path = shutil.copy(emoji_like[0], folder)
    for _ in range(2):
        assert sources.WebDataset(path, index_dir=str(tmp_path / "indices"))[0]["caption"] == "caption 0"


def test_a_cut_tar_keeps_what_precedes_and_counts_the_loss_as_one_record(emoji_like, caplog):
    with tarfile.open(emoji_like[0]) as tar:
        *_, last = tar.getmembers()
        captions = [tar.getmember(f"{i:05d}.txt") for i in range(6)]
    with open(emoji_like[0], "rb") as file:
        data = file.read()
    for cut in range(1024, last.offset_data + last.size, 701):
        with open(emoji_like[0], "wb") as file:
            file.write(data[:cut])
        source, readable, faults = sources.WebDataset(emoji_like), [], []
        for i in range(len(source)):
            try:
                readable.append(source[i]["caption"])
            except sources.CorruptRecord as fault:
                faults.append(fault)
        whole = sum(member.offset_data + member.size <= cut for member in captions)
        assert readable == [f"caption {i}" for i in [*range(len(readable) - 6), *range(6, 12)]]
        assert len(readable) == 6 + whole
        assert "cut short" in faults[-1].reason
        assert faults[-1].shard == emoji_like[0]
        assert len(faults) <= 2  # the last sample may have lost its caption only
    assert "what follows is lost" in caplog.text


def test_a_damaged_header_does_not_lose_samples_silently(emoji_like):
    with tarfile.open(emoji_like[0]) as tar:
        header = tar.getmember("00002.png").offset
    with open(emoji_like[0], "r+b") as file:
        file.seek(header + 5)
        file.write(b"?")
    source = sources.WebDataset(emoji_like)
    assert len(source) == 2 + 1 + 6
    with pytest.raises(sources.CorruptRecord, match=f"after byte {header}"):
        source[2]


def test_checksums_find_a_flipped_bit_that_still_decodes(make_tar, jpeg, pictures):
    path = make_tar("a.tar", {"0.jpg": jpeg(pictures[0]), "0.txt": b"a"})
    plain, checked = sources.WebDataset(path), sources.WebDataset(path, checksums=True)
    before = plain[0]["pixels"]
    np.testing.assert_array_equal(checked[0]["pixels"], before)
    with tarfile.open(path) as tar:
        member = tar.getmember("0.jpg")
    with open(path, "r+b") as file:
        file.seek(member.offset_data + member.size - 30)
        file.write(b"\x55")
    assert not np.array_equal(plain[0]["pixels"], before)
    with pytest.raises(sources.CorruptRecord, match="CRC-32"):
        checked[0]


def test_undecodable_and_oversized_members_are_corrupt_records_with_shard_and_key(make_tar, png, pictures):
    path = make_tar("a.tar", {"0.png": b"no image", "0.txt": b"a", "1.png": png(pictures[0]), "1.txt": b"\xff\xfe"})
    with pytest.raises(sources.CorruptRecord) as caught:
        sources.WebDataset(path)[0]
    assert (caught.value.shard, caught.value.key) == (path, "0")
    with pytest.raises(sources.CorruptRecord, match="utf-8"):
        sources.WebDataset(path)[1]
    with pytest.raises(sources.CorruptRecord, match="max_bytes=20"):
        sources.WebDataset(path, max_bytes=20)[1]


def test_what_is_no_plain_tar_is_refused_in_one_sentence(make_tar, png, pictures, tmp_path, emoji_like):
    with open(emoji_like[0], "rb") as file, gzip.open(tmp_path / "b.tar", "wb") as out:
        shutil.copyfileobj(file, out)
    with pytest.raises(sources.DatasetError, match="not an uncompressed tar"):
        len(sources.WebDataset(str(tmp_path / "b.tar")))
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        info = tarfile.TarInfo("0.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(sources.DatasetError, match=r"0\.png.*link"):
        len(sources.WebDataset(str(tmp_path / "c.tar")))


def test_missing_empty_and_captionless_datasets_are_refused_in_one_sentence(make_tar, png, pictures, tmp_path):
    with pytest.raises(sources.DatasetError, match=r"there is no file .*nowhere"):
        len(sources.WebDataset(str(tmp_path / "nowhere.tar")))
    with pytest.raises(sources.DatasetError, match=r"holds no \.tar file"):
        len(sources.WebDataset(str(tmp_path)))
    with pytest.raises(sources.DatasetError, match="image's extension"):
        len(sources.WebDataset(make_tar("empty.tar", {"a.txt": b"only text"})))
    with pytest.raises(sources.DatasetError, match=r"no sample .* has a \.txt member"):
        len(sources.WebDataset(make_tar("a.tar", {"0.png": png(pictures[0]), "0.json": b"{}"})))


def test_a_stored_index_is_used_until_the_tar_changes(emoji_like, tmp_path, monkeypatch):
    index_dir = str(tmp_path / "indices")
    first = sources.WebDataset(emoji_like[:1], index_dir=index_dir)
    expected = [sample["key"] for sample in first]
    assert len(os.listdir(index_dir)) == 1
    scans, scan = [], webdataset.scan
    monkeypatch.setattr(webdataset, "scan", lambda *arguments: scans.append(1) or scan(*arguments))
    assert [sample["key"] for sample in sources.WebDataset(emoji_like[:1], index_dir=index_dir)] == expected
    assert not scans
    shutil.copy(emoji_like[1], emoji_like[0])
    assert sources.WebDataset(emoji_like[:1], index_dir=index_dir)[0]["key"] == "00006"
    assert len(scans) == 1
    (stored,) = os.listdir(index_dir)
    with open(os.path.join(index_dir, stored), "wb") as file:
        file.write(b"PK broken")
    assert sources.WebDataset(emoji_like[:1], index_dir=index_dir)[0]["key"] == "00006"


def test_a_source_pickles_small_and_reads_the_same(emoji_like):
    source = sources.WebDataset(emoji_like)
    assert len(source) == 12
    data = pickle.dumps(source)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy == source
    np.testing.assert_array_equal(copy[5]["pixels"], source[5]["pixels"])


def test_fingerprint_changes_with_content_size_and_shards_but_not_with_the_folder(emoji_like, tmp_path):
    original = sources.WebDataset(emoji_like).fingerprint()
    moved = tmp_path / "moved"
    moved.mkdir()
    copies = tuple(shutil.copy(path, moved) for path in emoji_like)
    assert sources.WebDataset(copies).fingerprint() == original
    assert sources.WebDataset(copies[:1]).fingerprint() != original
    assert sources.WebDataset(copies, decoder=images.Decoder(background=(0, 0, 0))).fingerprint() != original
    assert sources.WebDataset(copies, max_bytes=10).fingerprint() != original


def test_one_letter_in_the_middle_of_a_large_tar_is_another_fingerprint(make_tar, png, pictures):
    rest = {f"{i}.{end}": data for i in (0, 2) for end, data in (("png", png(pictures[i])), ("bin", bytes(100_000)))}
    files = {"1.png": png(pictures[1]), "1.txt": b"a rad circle"}
    names = sorted([*rest, *files])
    path = make_tar("a.tar", {name: (rest | files)[name] for name in names})
    before = sources.WebDataset(path).fingerprint()
    with open(path, "r+b") as file:
        place = file.read().index(b"a rad circle")
        file.seek(place)
        file.write(b"a red circle")
    assert sources.WebDataset(path).fingerprint() != before


def test_a_stored_index_is_not_used_for_another_tar_of_the_same_size_and_time(make_tar, png, pictures, tmp_path):
    members = {"0.png": png(pictures[0]), "0.txt": b"one", "1.txt": b"two"}
    path, stored = make_tar("a.tar", members), str(tmp_path / "indices")
    status = os.stat(path)
    assert sources.WebDataset(path, index_dir=stored)[0]["caption"] == "one"
    other = make_tar("b.tar", {"0.png": members["0.png"], "1.txt": b"two", "0.txt": b"one"})
    os.replace(other, path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert os.stat(path).st_size == status.st_size
    assert sources.WebDataset(path, index_dir=stored)[0]["caption"] == "one"


def test_real_emoji_are_read_with_their_names(shared):
    source = sources.WebDataset(str(shared / "data" / "emoji.tar"))
    assert len(source) == 1870
    assert source[0]["caption"] == "grinning face"
    assert source[0]["pixels"].shape == (1, 128, 128, 3)
    assert source[0]["pixels"][0, 0, 0].tolist() == [255, 255, 255]
    assert sources.WebDataset(str(shared / "data" / "emoji.tar"), caption="json:name")[0]["caption"] == "grinning face"
