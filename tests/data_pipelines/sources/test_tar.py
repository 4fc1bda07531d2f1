import collections
import io
import os
import pathlib
import tarfile

import pytest

from data_pipelines.sources import tar


def read(path: str) -> list[tar.Entry]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return list(tar.entries(descriptor))
    finally:
        os.close(descriptor)


FILES = {
    "a.txt": b"hello",
    "empty.txt": b"",
    "folder/b.bin": bytes(range(256)) * 5,
    "x" * 60 + "/" + "y" * 90 + ".png": b"ustar prefix",
    "ünï" * 3 + ".txt": b"unicode",
}
LONG = {"d" * 90 + "/" + "e" * 180 + ".jpg": b"longer than ustar can say", "z.txt": b"after"}
FORMS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


@pytest.mark.parametrize("form", FORMS)
def test_names_offsets_and_sizes_agree_with_the_standard_library(form, make_tar):
    path = make_tar("a.tar", FILES | ({} if form == "ustar" else LONG), FORMS[form])
    with tarfile.open(path) as reference:
        expected = [(m.name, m.offset_data, m.size) for m in reference.getmembers()]
    assert [(e.name, e.offset, e.size) for e in read(path)] == expected
    assert all(entry.is_plain for entry in read(path))


def test_folders_are_left_out_and_links_are_not_plain(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, kind in (
            ("d", tarfile.DIRTYPE),
            ("l", tarfile.SYMTYPE),
            ("h", tarfile.LNKTYPE),
            ("p", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type = kind
            file.addfile(info)
    assert [(entry.name, entry.is_plain) for entry in read(str(tmp_path / "a.tar"))] == [
        ("l", False),
        ("h", False),
        ("p", False),
    ]


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_the_long_name_of_a_folder_does_not_rename_the_file_after_it(form, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=FORMS[form]) as file:
        folder = tarfile.TarInfo("d" * 300)
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        file.addfile(tarfile.TarInfo("short.txt"))
    assert [entry.name for entry in read(str(tmp_path / "a.tar"))] == ["short.txt"]


def test_a_sparse_member_is_not_plain(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("holes")
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": "10000000000"}
        file.addfile(info, io.BytesIO())
    assert [entry.is_plain for entry in read(str(tmp_path / "a.tar"))] == [False]


def test_a_tar_cut_at_any_block_gives_the_members_before_and_then_raises(make_tar):
    path = make_tar("a.tar", FILES)
    whole, data = read(path), pathlib.Path(path).read_bytes()
    end = max(-(-(entry.offset + entry.size) // 512) * 512 for entry in whole)
    for cut in range(0, end + 1, 256):
        with open(path, "wb") as file:
            file.write(data[:cut])
        found: list[tar.Entry] = []
        with open(path, "rb") as file, pytest.raises(tar.Damaged) as caught:
            collections.deque(map(found.append, tar.entries(file.fileno())))
        assert caught.value.offset <= -(-cut // 512) * 512
        assert found == [entry for entry in whole if entry.offset + entry.size <= cut]


def test_a_flipped_bit_in_any_header_is_noticed(make_tar):
    path = make_tar("a.tar", FILES)
    offsets, data = [entry.offset - 512 for entry in read(path)], pathlib.Path(path).read_bytes()
    for header in offsets:
        for byte in (0, 3, 125, 135, 150, 156, 300):
            broken = bytearray(data)
            broken[header + byte] ^= 1
            with open(path, "wb") as file:
                file.write(broken)
            with pytest.raises(tar.Damaged) as caught:
                read(path)
            assert caught.value.offset == header


def test_a_member_larger_than_the_file_and_a_huge_extended_header_are_refused(make_tar, tmp_path):
    info = tarfile.TarInfo("bomb")
    info.size = 10 * 2**30
    (tmp_path / "a.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(tar.Damaged, match="bomb"):
        read(str(tmp_path / "a.tar"))
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, 2**30
    (tmp_path / "b.tar").write_bytes(info.tobuf() + bytes(2048))
    with pytest.raises(tar.Damaged, match="extended"):
        read(str(tmp_path / "b.tar"))


@pytest.mark.parametrize(
    "record", [b"5 a=\n", b"99 a=b\n", b"a=b\n", b"12 size=-5\n\n", b"0 a=b\n", b"9" * 20 + b" a=b\n"]
)
def test_malformed_pax_records_are_refused(record, tmp_path):
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = tarfile.XHDTYPE, len(record)
    tail = tarfile.TarInfo("a").tobuf() + bytes(1024)
    (tmp_path / "a.tar").write_bytes(info.tobuf() + record.ljust(512, b"\0") + tail)
    if record == b"5 a=\n":
        assert [entry.name for entry in read(str(tmp_path / "a.tar"))] == ["a"]
    else:
        with pytest.raises(tar.Damaged):
            read(str(tmp_path / "a.tar"))
