"""Files that are there as a whole, or as they were before."""

import pytest

from nova_jax import atomic


def test_a_file_takes_its_name_when_it_is_whole_and_nothing_else_stays(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write(path, "old ü")
    with atomic.replacing(path) as partial:
        partial.write_text("new")
        assert path.read_text(encoding="utf-8") == "old ü"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_file_of_before_and_no_partial_one(tmp_path):
    path = tmp_path / "a.txt"
    atomic.write(path, "old")
    with pytest.raises(ZeroDivisionError), atomic.replacing(path) as partial:
        partial.write_text(f"new {1 / 0}")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_share_a_partial_one(tmp_path):
    with atomic.replacing(tmp_path / "a.txt") as first, atomic.replacing(tmp_path / "a.txt") as second:
        assert first != second
        first.write_text("first")
        second.write_text("second")
    assert (tmp_path / "a.txt").read_text() == "first"
