import os
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines import sources


@pytest.fixture
def make_parquet(tmp_path, pictures, png):
    def make(name: str = "a.parquet", rows: range = range(12), *, as_struct: bool = False, **columns) -> str:
        data = [png(pictures[i]) for i in rows]
        images = [{"bytes": b, "path": "x"} for b in data] if as_struct else data
        table = pa.table({"image": images, "caption": [f"caption {i}" for i in rows], "label": list(rows)} | columns)
        pq.write_table(table, tmp_path / name, row_group_size=3, use_dictionary=False, write_page_checksum=True)
        return str(tmp_path / name)

    return make


@pytest.mark.parametrize("as_struct", [False, True])
def test_rows_come_back_in_order_over_row_groups_and_files(as_struct, make_parquet, pictures):
    paths = (make_parquet("a.parquet", range(7), as_struct=as_struct), make_parquet("b.parquet", range(7, 12)))
    source = sources.Parquet(paths)
    assert [sample["caption"] for sample in source] == [f"caption {i}" for i in range(12)]
    for i in (0, 6, 7, 11):
        np.testing.assert_array_equal(source[i]["pixels"], pictures[i][None])


def test_the_least_recently_used_row_group_is_dropped(make_parquet, monkeypatch):
    source, loads, read = sources.Parquet(make_parquet(), cached_groups=2), [], pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **k: loads.append(group) or read(self, group, **k)
    )
    for index, expected in [(0, [0]), (2, []), (3, [1]), (1, []), (6, [2]), (0, []), (4, [1]), (8, [2])]:
        loads.clear()
        assert source[index]["caption"] == f"caption {index}"
        assert loads == expected, index


def test_more_row_groups_than_are_kept_is_said(make_parquet, caplog):
    len(sources.Parquet(make_parquet(), cached_groups=4))
    assert not caplog.text
    len(sources.Parquet(make_parquet(), cached_groups=3))
    assert "4 row groups, but only 3 are kept" in caplog.text


def test_damaged_pages_bad_pictures_and_nulls_are_corrupt_records_with_file_and_row(make_parquet, png, pictures):
    path = make_parquet(rows=range(4), image=[b"no image", None, png(pictures[2]), png(pictures[3])])
    source = sources.Parquet(path)
    with pytest.raises(sources.CorruptRecord, match="UnidentifiedImageError") as caught:
        source[0]
    assert (caught.value.shard, caught.value.key) == (path, 0)
    with pytest.raises(sources.CorruptRecord, match="image is null"):
        source[1]
    path = make_parquet("b.parquet")
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    with open(path, "r+b") as file:
        file.seek(column.data_page_offset + column.total_compressed_size - 50)
        file.write(b"damaged")
    source = sources.Parquet(path)
    assert source[0]["caption"] == "caption 0"
    with pytest.raises(sources.CorruptRecord, match="record 4"):
        source[4]
    assert source[6]["caption"] == "caption 6"


def test_a_byte_order_mark_is_no_part_of_a_caption(make_parquet):
    assert sources.Parquet(make_parquet(rows=range(1), caption=["\ufeffa heart"]))[0]["caption"] == "a heart"


def test_wrong_columns_are_refused_with_the_columns_there_are(make_parquet):
    path = make_parquet()
    with pytest.raises(sources.DatasetError, match=r"no binary column 'label'; it has image \(binary\), caption"):
        len(sources.Parquet(path, image="label"))
    with pytest.raises(sources.DatasetError, match=r"no text column 'label'.*label \(int64\)"):
        len(sources.Parquet(path, caption="label"))
    with pytest.raises(sources.DatasetError, match="no text column 'text'"):
        len(sources.Parquet(path, caption="text"))
    assert sources.Parquet(path, caption=None)[0]["caption"] == ""


def test_missing_truncated_and_empty_files_are_refused_in_one_sentence(make_parquet, tmp_path):
    with pytest.raises(sources.DatasetError, match="there is no file"):
        len(sources.Parquet(str(tmp_path / "nowhere.parquet")))
    path = make_parquet()
    with open(path, "r+b") as file:
        file.truncate(os.path.getsize(path) - 100)
    with pytest.raises(sources.DatasetError, match="cannot be read as Parquet"):
        len(sources.Parquet(path))
    pq.write_table(pa.table({"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}), path)
    with pytest.raises(sources.DatasetError, match="hold no rows"):
        len(sources.Parquet(path))


def test_a_source_pickles_without_its_row_groups(make_parquet):
    source = sources.Parquet(make_parquet())
    assert source[5]["caption"] == "caption 5"
    data = pickle.dumps(source)
    assert len(data) < 1000
    assert pickle.loads(data)[5]["caption"] == "caption 5"


def test_fingerprint_changes_with_one_caption(make_parquet):
    before = sources.Parquet(make_parquet()).fingerprint()
    assert sources.Parquet(make_parquet()).fingerprint() == before
    changed = make_parquet(caption=[f"caption {i if i != 4 else 9}" for i in range(12)])
    assert sources.Parquet(changed).fingerprint() != before


def test_one_letter_in_the_middle_of_a_large_file_is_another_fingerprint(make_parquet):
    path = make_parquet(rows=range(3), caption=["a" * 10, "a rad circle", "b"], weight=[bytes(100_000)] * 3)
    before = sources.Parquet(path).fingerprint()
    with open(path, "r+b") as file:
        place = file.read().index(b"a rad circle")
        file.seek(place)
        file.write(b"a red circle")
    assert sources.Parquet(path).fingerprint() != before


def test_real_cifar_rows_decode(shared):
    source = sources.Parquet(str(shared / "data" / "cifar10_test.parquet"))
    assert len(source) == 10_000
    assert source[9_999]["pixels"].shape == (1, 32, 32, 3)
    assert source[0]["caption"].startswith("a photo of a")
