import os
import pickle

import ml_dtypes
import numpy as np
import pytest

from data_pipelines import sources
from data_pipelines.sources import array_record, record_format


@pytest.fixture
def files(tmp_path, pictures):
    paths = []
    for part, rows in enumerate((range(7), range(7, 12))):
        path = tmp_path / f"{part}.array_record"
        samples = ({"pixels": pictures[i][None], "caption": f"caption {i}", "half": half(i)} for i in rows)
        assert array_record.write(path, samples) == len(rows)
        paths.append(str(path))
    return tuple(paths)


def half(i: int) -> np.ndarray:
    return np.full((1, 2, 2, 4), i + 0.5, ml_dtypes.bfloat16)


def test_what_was_written_is_read_over_several_files(files, pictures):
    source = sources.ArrayRecords(files)
    assert len(source) == 12
    for i in (11, 0, 6, 7, 3):
        np.testing.assert_array_equal(source[i]["pixels"], pictures[i][None])
        np.testing.assert_array_equal(source[i]["half"], half(i))
        assert source[i]["half"].dtype == ml_dtypes.bfloat16
        assert source[i]["caption"] == f"caption {i}"


def test_encoded_pictures_are_decoded(tmp_path, png, pictures):
    path = str(tmp_path / "a.array_record")
    array_record.write(path, [{"image": png(pictures[0]), "caption": "a"}, {"image": b"none", "caption": "b"}])
    source = sources.ArrayRecords(path)
    np.testing.assert_array_equal(source[0]["pixels"], pictures[0][None])
    assert "image" not in source[0]
    with pytest.raises(sources.CorruptRecord, match="record 1: UnidentifiedImageError"):
        source[1]


def test_a_flipped_bit_is_one_corrupt_record_and_never_silent(files):
    clean = [sample["pixels"] for sample in sources.ArrayRecords(files[0])]
    with open(files[0], "rb") as file:
        data = file.read()
    rng, hit = np.random.default_rng(0), 0
    for place in rng.integers(0, 7 * 300, 40):
        broken = bytearray(data)
        broken[place] ^= 1 << rng.integers(8)
        with open(files[0], "wb") as file:
            file.write(broken)
        source, faults = sources.ArrayRecords(files[0]), []
        for i, pixels in enumerate(clean):
            try:
                np.testing.assert_array_equal(source[i]["pixels"], pixels)
            except sources.CorruptRecord as fault:
                faults.append((i, fault))
        assert all((fault.shard, fault.key) == (files[0], i) for i, fault in faults)
        hit += bool(faults)
    assert hit > 20


def test_a_record_of_another_format_is_corrupt(tmp_path):
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    writer.write(b"something else")
    writer.close()
    with pytest.raises(sources.CorruptRecord, match="mark of this format"):
        sources.ArrayRecords(str(tmp_path / "a.array_record"))[0]


def test_missing_and_cut_files_are_refused_in_one_sentence(files, tmp_path):
    with pytest.raises(sources.DatasetError, match="there is no file"):
        len(sources.ArrayRecords(str(tmp_path / "nowhere.array_record")))
    with open(files[1], "r+b") as file:
        file.truncate(os.path.getsize(files[1]) // 2)
    with pytest.raises(sources.DatasetError, match=r"1\.array_record holds no records: it is empty or cut short"):
        len(sources.ArrayRecords(files))


def test_a_failed_write_leaves_no_file(tmp_path):
    def samples():
        yield {"a": 1}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        array_record.write(tmp_path / "a.array_record", samples())
    assert not (tmp_path / "a.array_record").exists()


def test_a_source_pickles_without_its_readers(files):
    source = sources.ArrayRecords(files)
    assert len(source) == 12
    assert pickle.loads(pickle.dumps(source))[8]["caption"] == "caption 8"


def test_fingerprint_names_order_and_content(files):
    original = sources.ArrayRecords(files).fingerprint()
    assert sources.ArrayRecords(files[::-1]).fingerprint() != original
    array_record.write(files[0], [{"a": 1}])
    assert sources.ArrayRecords(files).fingerprint() != original


def test_a_flipped_bit_in_the_middle_of_a_file_is_another_fingerprint(tmp_path):
    path = tmp_path / "a.array_record"
    array_record.write(path, [{"latents": np.zeros(100_000, np.uint8), "caption": "a"}] * 3)
    before = sources.ArrayRecords(str(path)).fingerprint()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert sources.ArrayRecords(str(path)).fingerprint() != before


def test_half_a_character_in_a_caption_is_one_corrupt_record(tmp_path):
    path = tmp_path / "a.array_record"
    half = record_format.encode({"caption": "@@", "x": np.zeros(1)}).replace(b'"@@"', b'"\\ud83d"')
    half = half[:4] + (len(half) - 16).to_bytes(4, "little") + half[8:]
    module = pytest.importorskip("array_record.python.array_record_module")
    writer = module.ArrayRecordWriter(str(path), "group_size:1")
    for record in (record_format.encode({"caption": "whole", "x": np.zeros(1)}), half):
        writer.write(record)
    writer.close()
    source = sources.ArrayRecords(str(path))
    assert source[0]["caption"] == "whole"
    with pytest.raises(sources.CorruptRecord, match="half a character"):
        source[1]
