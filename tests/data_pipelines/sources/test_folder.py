import json
import os
import pickle
import shutil
import socket

import numpy as np
import pytest

from data_pipelines import images, sources
from data_pipelines.sources import record_format


@pytest.fixture
def folder(tmp_path, pictures, png, jpeg):
    (tmp_path / "sub").mkdir()
    for i, pixels in enumerate(pictures[:4]):
        stem = tmp_path / ("sub" if i % 2 else ".") / f"{i}"
        stem.with_suffix(".png").write_bytes(png(pixels))
        stem.with_suffix(".txt").write_text(f"caption {i}\n")
    return tmp_path


def test_pictures_come_in_the_order_of_their_names_with_the_text_beside_them(folder, pictures):
    source = sources.Folder(folder)
    assert [sample["key"] for sample in source] == ["0.png", "2.png", "sub/1.png", "sub/3.png"]
    assert [sample["caption"] for sample in source] == ["caption 0", "caption 2", "caption 1", "caption 3"]
    np.testing.assert_array_equal(source[2]["pixels"], pictures[1][None])


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_metadata_file_gives_captions_and_order(form, folder, pictures):
    rows = [("sub/3.png", 'three, with "quotes"'), ("0.png", "nought")]
    if form == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text, "extra": 1}) for name, text in rows]
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n\n")
    else:
        (folder / "metadata.csv").write_text('file_name,text\nsub/3.png,"three, with ""quotes"""\n0.png,nought\n')
    source = sources.Folder(folder, caption="text")
    assert [(sample["key"], sample["caption"]) for sample in source] == rows
    np.testing.assert_array_equal(source[0]["pixels"], pictures[3][None])
    with pytest.raises(sources.DatasetError, match="no text under 'caption', only file_name, text"):
        len(sources.Folder(folder))
    assert len(sources.Folder(folder, caption=None)) == 4


def test_metadata_cannot_name_files_outside_the_folder(folder, tmp_path_factory, png, pictures):
    outside = tmp_path_factory.mktemp("outside") / "secret.png"
    outside.write_bytes(png(pictures[0]))
    os.symlink(outside, folder / "link.png")
    for name in ("../" + os.path.relpath(outside, folder.parent), str(outside), "link.png", "sub/../../x.png"):
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": name, "caption": "x"}))
        with pytest.raises(sources.DatasetError, match="lies outside"):
            len(sources.Folder(folder))
    (folder / "metadata.jsonl").unlink()
    assert "link.png" not in [sample["key"] for sample in sources.Folder(folder)]


def test_a_missing_caption_or_a_damaged_picture_is_one_corrupt_record(folder):
    (folder / "0.txt").unlink()
    (folder / "2.png").write_bytes(b"no image")
    source = sources.Folder(folder)
    with pytest.raises(sources.CorruptRecord, match=r"record 0\.png: there is no 0\.txt"):
        source[0]
    with pytest.raises(sources.CorruptRecord, match=r"record 2\.png: UnidentifiedImageError"):
        source[1]
    assert source[2]["caption"] == "caption 1"


def test_missing_empty_and_captionless_folders_are_refused_in_one_sentence(tmp_path, png, pictures):
    with pytest.raises(sources.DatasetError, match=r"there is no folder .*nowhere"):
        len(sources.Folder(tmp_path / "nowhere"))
    with pytest.raises(sources.DatasetError, match="holds no images"):
        len(sources.Folder(tmp_path))
    (tmp_path / "a.png").write_bytes(png(pictures[0]))
    with pytest.raises(sources.DatasetError, match=r"no image .* has a caption"):
        len(sources.Folder(tmp_path))
    assert sources.Folder(tmp_path, caption=None)[0]["caption"] == ""
    for content in (b"not json\n", b"[1, 2]\n", b"7\n", b"\xff\xfe\n"):
        (tmp_path / "metadata.jsonl").write_bytes(content)
        with pytest.raises(sources.DatasetError, match=r"metadata\.jsonl cannot be read"):
            len(sources.Folder(tmp_path))


def test_the_background_of_the_decoder_shows_through_transparency(tmp_path, png):
    (tmp_path / "a.png").write_bytes(png(np.zeros((2, 2, 4), np.uint8)))
    (tmp_path / "a.txt").write_text("nothing")
    source = sources.Folder(tmp_path, decoder=images.Decoder(background=(1, 2, 3)))
    assert source[0]["pixels"].tolist() == [[[[1, 2, 3]] * 2] * 2]


def test_a_source_pickles_without_its_index(folder):
    source = sources.Folder(folder)
    assert len(source) == 4
    copy = pickle.loads(pickle.dumps(source))
    assert copy == source
    assert "_entries" not in vars(copy)
    assert copy[3]["caption"] == "caption 3"


def test_fingerprint_changes_when_files_come_or_go_but_not_with_the_folder(folder, png, pictures, tmp_path_factory):
    seen = {sources.Folder(folder).fingerprint()}
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("copy") / "of")
    assert sources.Folder(copy).fingerprint() in seen
    (folder / "9.png").write_bytes(png(pictures[5]))
    seen.add(sources.Folder(folder).fingerprint())
    (folder / "9.txt").write_text("nine")
    seen.add(sources.Folder(folder).fingerprint())
    (folder / "9.png").rename(folder / "8.png")
    seen.add(sources.Folder(folder).fingerprint())
    assert len(seen) == 4


def test_a_caption_corrected_or_a_picture_redrawn_in_as_many_bytes_is_another_fingerprint(folder):
    (folder / "0.txt").write_text("a rad circle")
    picture = bytearray((folder / "sub/3.png").read_bytes())
    seen = {sources.Folder(folder).fingerprint()}
    (folder / "0.txt").write_text("a red circle")
    seen.add(sources.Folder(folder).fingerprint())
    without = sources.Folder(folder, caption=None).fingerprint()
    picture[len(picture) // 2] ^= 1
    (folder / "sub/3.png").write_bytes(picture)
    seen.add(sources.Folder(folder).fingerprint())
    assert sources.Folder(folder, caption=None).fingerprint() != without
    for caption in ("a rad circle", "a red circle"):
        (folder / "metadata.csv").write_text(f"file_name,caption\n0.png,{caption}\n")
        seen.add(sources.Folder(folder).fingerprint())
    assert len(seen) == 5


def test_a_picture_that_cannot_be_opened_has_a_fingerprint_and_is_one_corrupt_record(folder):
    (folder / "metadata.csv").write_text("file_name,caption\nnone.png,a\nsub,b\n0.png,c\n")
    source = sources.Folder(folder)
    assert source.fingerprint() == sources.Folder(folder).fingerprint()
    with pytest.raises(sources.CorruptRecord, match=r"record none\.png: there is no none\.png"):
        source[0]
    with pytest.raises(sources.CorruptRecord, match=r"record sub: sub cannot be opened"):
        source[1]
    assert source[2]["caption"] == "c"


def test_a_byte_order_mark_is_no_part_of_a_caption(folder):
    for name, text in (("0.txt", "a heart"), ("metadata.jsonl", '{"file_name": "0.png", "caption": "a heart"}')):
        (folder / name).write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert sources.Folder(folder)[0]["caption"] == "a heart"
    joined = (folder / "metadata.jsonl").read_bytes() + b"\n"
    (folder / "metadata.jsonl").write_bytes(joined * 2)
    assert [sample["caption"] for sample in sources.Folder(folder)] == ["a heart", "a heart"]
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_bytes(b"\xef\xbb\xbffile_name,caption\n0.png,\xef\xbb\xbfa heart\n")
    assert sources.Folder(folder)[0]["caption"] == "a heart"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"file_name": "0.png", "caption": "half \\ud83d"}', "not Unicode: '.ud83d' at place 5"),
        (b'{"file_name": "0.png", "caption": "caf\xe9"}', "not Unicode"),
        (b"[" * 100_000, "row 2 of .* cannot be read"),
        (b'{"file_name": ', "row 2 of .* cannot be read"),
        (b"7", "row 2 of .* cannot be read"),
        (b'{"file_name": "0.png", "caption": null}', "no text under 'caption'"),
        (b'{"caption": "a"}', "no text under 'file_name'"),
        (b'{"file_name": "../x.png", "caption": "a"}', "lies outside"),
        (b'{"file_name": "a\\u0000b", "caption": "a"}', "null"),
        (b'{"file_name": "\\ud83d.png", "caption": "a"}', "surrogate"),
        (b'{"file_name": "%s.png", "caption": "a"}' % (b"x" * 300), "cannot be opened"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_corrupt_record(line, reason, folder):
    good = b'{"file_name": "2.png", "caption": "two"}'
    (folder / "metadata.jsonl").write_bytes(b"\n".join([good, line, good]))
    source = sources.Folder(folder)
    assert [source[i]["caption"] for i in (0, 2)] == ["two", "two"]
    with pytest.raises(sources.CorruptRecord, match=reason):
        source[1]
    assert len(source.fingerprint()) == 64


def test_a_row_of_a_csv_file_that_cannot_be_used_is_one_corrupt_record(folder):
    (folder / "metadata.csv").write_bytes(b'file_name,caption\n0.png,"a"b\n2.png,caf\xe9\nsub/1.png,one\n')
    source = sources.Folder(folder)
    for index, reason in ((0, "row 1 of .* cannot be read"), (1, "not Unicode")):
        with pytest.raises(sources.CorruptRecord, match=reason):
            source[index]
    assert source[2]["caption"] == "one"


def test_names_that_are_not_utf8_are_read_and_told_in_text_that_can_be_stored(folder, png, pictures):
    name = os.fsencode(folder) + b"/caf\xe9"
    for suffix, data in ((b".png", png(pictures[7])), (b".txt", b"coffee")):
        with open(name + suffix, "wb") as file:
            file.write(data)
    source = sources.Folder(folder)
    keys = [sample["key"] for sample in source]
    assert keys == ["0.png", "2.png", "caf?.png", "sub/1.png", "sub/3.png"]
    np.testing.assert_array_equal(source[2]["pixels"], pictures[7][None])
    assert record_format.decode(record_format.encode({"key": keys[2]})) == {"key": keys[2]}
    assert len(source.fingerprint()) == 64
    (folder / "metadata.csv").write_bytes(b"file_name,caption\ncaf\xe9.png,coffee\n")
    assert sources.Folder(folder)[0]["key"] == "caf?.png"


def test_hidden_files_and_folders_hold_no_pictures(folder, png, pictures):
    expected = [sample["key"] for sample in sources.Folder(folder)]
    for name in ("._0.png", ".thumbnails/0.png", "sub/.ipynb_checkpoints/1.png", "__MACOSX/sub/1.png", "@eaDir/0.png"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(png(pictures[0]))
    assert [sample["key"] for sample in sources.Folder(folder)] == expected
    hidden = shutil.copytree(folder, folder / ".data", ignore=shutil.ignore_patterns(".*"))
    assert [sample["key"] for sample in sources.Folder(hidden)] == expected


def test_pipes_and_sockets_are_no_pictures_and_never_waited_for(folder):
    expected = [sample["key"] for sample in sources.Folder(folder)]
    os.mkfifo(folder / "pipe.png")
    (folder / "link.png").symlink_to("pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "socket.png"))
    assert [sample["key"] for sample in sources.Folder(folder)] == expected
    (folder / "0.txt").unlink()
    os.mkfifo(folder / "0.txt")
    with pytest.raises(sources.CorruptRecord, match=r"0\.txt is a pipe, socket or device, not a file"):
        sources.Folder(folder)[0]
    (folder / "metadata.csv").write_text("file_name,caption\npipe.png,a\n2.png,b\n")
    named = sources.Folder(folder)
    assert len(named.fingerprint()) == 64
    with pytest.raises(sources.CorruptRecord, match=r"record pipe\.png: pipe\.png is a pipe, socket or device"):
        named[0]
    assert named[1]["caption"] == "b"


def test_pictures_in_formats_that_are_not_read_are_said(folder, caplog):
    (folder / "phone.HEIC").touch()
    assert len(sources.Folder(folder)) == 4
    assert "1 files are left out, the first 'phone.HEIC'" in caplog.text
