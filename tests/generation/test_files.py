"""Names of files tell texts apart, and what is there is never replaced unasked."""

import pathlib

import numpy as np
import pytest

from nova_jax import generation


def test_plain_words_make_a_plain_name():
    assert generation.files.name("a red circle", 3) == "a-red-circle-seed3"


def test_different_texts_have_different_names_though_their_letters_agree():
    long = "red " * 20
    texts = [
        "a b",
        "a  b",
        "a-b",
        "A b",
        "a b.",
        "\U0001f98a",
        "\U0001f40b",
        "",
        long,
        long + "x",
        "\u0939\u093f",
        "\u0939\u0940",
    ]
    names = [generation.files.name(text, 0) for text in texts]
    assert len(set(names)) == len(texts)


def test_a_name_with_facts_is_that_of_the_facts():
    one, two = (generation.files.name("fox", 0, kind="vary", facts={"strength": n}) for n in "12")
    assert one != two
    assert one.startswith("vary-fox-")
    assert one == generation.files.name("fox", 0, kind="vary", facts={"strength": "1"})


@pytest.mark.parametrize("letter", ["a", "\u72d0", "\U0001d400", "\u0130", "\udcff"])
def test_every_text_has_a_name_that_a_file_system_takes(letter, tmp_path):
    name = (
        generation.files.name(letter * 1000, 4294967295, kind="color-guided", facts={"request": letter})
        + "-999.mp4.partial"
    )
    assert len(name.encode()) < 255
    (tmp_path / name).write_text("")


def test_what_fails_to_be_written_leaves_nothing_and_spoils_nothing(tmp_path):
    def fails(path):
        path.write_text("half")
        raise OSError("full")

    kept = generation.files.save(tmp_path / "a.txt", lambda path: path.write_text("whole"))
    with pytest.raises(OSError, match="full"):
        generation.files.save(tmp_path / "a.txt", fails)
    assert list(tmp_path.iterdir()) == [kept]
    assert kept.read_text() == "whole"


def test_equal_files_are_one_and_others_are_numbered(tmp_path):
    def save(text):
        return generation.files.save(tmp_path / "new" / "a.txt", lambda path: path.write_text(text)).name

    assert [save(text) for text in "xyxyzx"] == ["a.txt", "a-2.txt", "a.txt", "a-2.txt", "a-3.txt", "a.txt"]


def test_folders_are_numbered_and_an_empty_one_that_failed_is_gone(tmp_path):
    for wanted in ("film", "film-2"):
        with generation.files.folder(tmp_path / "film") as found:
            assert found.name == wanted
    with pytest.raises(ValueError, match="no"), generation.files.folder(tmp_path / "film"):
        raise ValueError("no")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film", "film-2"]
    with generation.files.folder(tmp_path / "film", overwrite=True) as found:
        assert found.name == "film"


def test_a_png_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    picture, place = np.zeros((2, 2, 3), np.uint8), tmp_path / "a.png"
    generation.files.save_png(place, picture, {})
    before = place.read_bytes()
    monkeypatch.setattr(pathlib.Path, "replace", lambda *paths: (_ for _ in ()).throw(OSError("no space")))
    for overwrite in (False, True):
        with pytest.raises(OSError, match="no space"):
            generation.files.save_png(place, picture + 1, {}, overwrite=overwrite)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]
