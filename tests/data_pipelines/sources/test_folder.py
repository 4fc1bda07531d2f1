import json
import os
import pickle

import numpy as np
import pytest

from data_pipelines import images, sources


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
    (folder / "2.png").write_bytes(b"no picture")
    source = sources.Folder(folder)
    with pytest.raises(sources.CorruptRecord, match=r"record 0\.png: there is no 0\.txt"):
        source[0]
    with pytest.raises(sources.CorruptRecord, match=r"record 2\.png: UnidentifiedImageError"):
        source[1]
    assert source[2]["caption"] == "caption 1"


def test_missing_empty_and_captionless_folders_are_refused_in_one_sentence(tmp_path, png, pictures):
    with pytest.raises(sources.DatasetError, match=r"there is no folder .*nowhere"):
        len(sources.Folder(tmp_path / "nowhere"))
    with pytest.raises(sources.DatasetError, match="holds no pictures"):
        len(sources.Folder(tmp_path))
    (tmp_path / "a.png").write_bytes(png(pictures[0]))
    with pytest.raises(sources.DatasetError, match=r"no picture .* has a caption"):
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


def test_fingerprint_changes_when_files_come_go_or_change_size(folder, png, pictures):
    seen = {sources.Folder(folder).fingerprint()}
    assert sources.Folder(folder).fingerprint() in seen
    (folder / "9.png").write_bytes(png(pictures[5]))
    seen.add(sources.Folder(folder).fingerprint())
    (folder / "9.txt").write_text("nine")
    seen.add(sources.Folder(folder).fingerprint())
    (folder / "9.txt").write_text("ninety")
    seen.add(sources.Folder(folder).fingerprint())
    assert len(seen) == 4
