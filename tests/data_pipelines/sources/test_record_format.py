import contextlib
import json

import ml_dtypes
import numpy as np
import pytest

from data_pipelines.sources import record_format

SAMPLE = {
    "latents": np.random.default_rng(0).normal(size=(1, 3, 4, 5)).astype(ml_dtypes.bfloat16),
    "pixels": np.arange(24, dtype=np.uint8).reshape(1, 2, 4, 3),
    "caption": "ein Äpfelchen 🍏",
    "captions": ["a", "b"],
    "tags": {"n": 3, "x": 0.1, "none": None},
    "image": b"\x00\xff bytes",
    "empty": np.zeros((0, 3), np.float32),
    "scalar": np.float64(0.1),
    "mask": np.array([True, False]),
    "column_order": np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3)),
}


def test_a_sample_comes_back_to_the_bit():
    back = record_format.decode(record_format.encode(SAMPLE))
    assert back.keys() == SAMPLE.keys()
    for name, value in SAMPLE.items():
        if isinstance(value, (np.ndarray, np.generic)):
            assert back[name].dtype == value.dtype
            assert back[name].shape == value.shape
            np.testing.assert_array_equal(back[name], value)
        else:
            assert back[name] == value


def test_every_listed_dtype_comes_back():
    for dtype in sorted(record_format.DTYPES):
        array = np.array([0, 1, 1, 0]).astype(record_format.DTYPES[dtype])
        back = record_format.decode(record_format.encode({"a": array}))["a"]
        assert back.dtype.name == dtype
        np.testing.assert_array_equal(back, array)


def test_big_endian_arrays_are_stored_in_the_one_byte_order():
    array = np.arange(5, dtype=">i4")
    assert record_format.encode({"a": array}) == record_format.encode({"a": array.astype("<i4")})


def test_what_is_neither_array_nor_json_is_refused():
    for value in (np.array([object()]), np.array(["text"]), {1, 2}, object()):
        with pytest.raises(TypeError):
            record_format.encode({"a": value})


def test_a_record_cut_anywhere_is_refused():
    data = record_format.encode(SAMPLE)
    for cut in range(0, len(data), 7):
        with pytest.raises(record_format.BadRecord):
            record_format.decode(data[:cut])
    with pytest.raises(record_format.BadRecord, match="left over"):
        record_format.decode(data + b"x")


@pytest.mark.parametrize(
    "array",
    [
        ["a", "float32", [0, 2**62]],
        ["a", "float32", [2**40, 2**40]],
        ["a", "float32", [-1]],
        ["a", "object", [1]],
        ["a", "O", [1]],
        ["a", "bytes", [1, 1]],
        ["a", "float32", "x"],
        ["a", "float32"],
    ],
)
def test_hostile_headers_are_refused(array):
    header = json.dumps({"fields": {}, "arrays": [array]}).encode()
    with pytest.raises(record_format.BadRecord):
        record_format.decode(record_format.PREFIX.pack(record_format.MAGIC, len(header)) + header)


def test_damaged_bytes_raise_nothing_but_bad_record():
    rng = np.random.default_rng(0)
    data = record_format.encode(SAMPLE)
    for _ in range(2000):
        broken = bytearray(data)
        for place in rng.integers(0, len(data), 3):
            broken[place] ^= 1 << rng.integers(8)
        with contextlib.suppress(record_format.BadRecord):
            record_format.decode(bytes(broken))
