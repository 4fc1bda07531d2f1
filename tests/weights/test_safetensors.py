import json
import pathlib
import random

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from nova_jax.weights import safetensors as ours
from nova_jax.weights.safetensors import WeightsError

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.array([1.5, -2], np.float16),
    "c": np.arange(3, dtype=ml_dtypes.bfloat16),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 4), np.float32),
    "flag": np.array([True, False, True]),
}


@pytest.fixture
def path(tmp_path):
    ours.write(tmp_path / "x.safetensors", TENSORS, {"format": "test"})
    return tmp_path / "x.safetensors"


def write_raw(path: pathlib.Path, header, data: bytes = b"") -> pathlib.Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def assert_same(read, written):
    assert set(read) == set(written)
    for name, array in written.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(np.asarray(read[name]), array)


def test_what_is_written_is_read_back(path):
    assert_same(ours.read(path), TENSORS)
    assert ours.read_header(path).metadata == {"format": "test"}


def test_the_reference_implementation_reads_what_we_write(path):
    assert_same(safetensors.numpy.load_file(path), TENSORS)


def test_we_read_what_the_reference_implementation_writes(tmp_path):
    safetensors.numpy.save_file(TENSORS, tmp_path / "y.safetensors", {"by": "reference"})
    assert_same(ours.read(tmp_path / "y.safetensors"), TENSORS)


def test_float8_is_read(tmp_path):
    array = np.array([0.5, -448.0, 2.0], ml_dtypes.float8_e4m3fn)
    header = {"w": {"dtype": "F8_E4M3", "shape": [3], "data_offsets": [0, 3]}}
    read = ours.read(write_raw(tmp_path / "f8.safetensors", header, array.tobytes()))
    np.testing.assert_array_equal(read["w"].astype(np.float32), [0.5, -448, 2])


def test_writing_casts_floats_only(tmp_path):
    ours.write(tmp_path / "h.safetensors", {"f": jnp.ones(3), "i": jnp.arange(3)}, dtype="bfloat16")
    read = ours.read(tmp_path / "h.safetensors")
    assert (read["f"].dtype, read["i"].dtype) == (ml_dtypes.bfloat16, np.int32)


@pytest.mark.parametrize("dtype", ["float12", np.complex64, "int8"])
def test_floats_are_stored_as_floats_that_the_format_has(tmp_path, dtype):
    with pytest.raises(WeightsError, match=r"'f' cannot be stored as .*; use one of float16, bfloat16, float32"):
        ours.write(tmp_path / "x.safetensors", {"f": np.ones(3)}, dtype=dtype)
    assert not list(tmp_path.iterdir())


LARGEST = {"float16": 65504, "bfloat16": 3.3895314e38, "float8_e4m3fn": 448, "float8_e5m2": 57344}


@pytest.mark.parametrize(
    ("dtype", "value", "advice"),
    [
        ("float16", -70_000, "float16 ends at 65504: take the dtype bfloat16 or float32"),
        ("bfloat16", 3.4e38, "bfloat16 ends at 3.38953e.38: take the dtype float32 or float64"),
        ("float8_e4m3fn", 500, "float8_e4m3fn ends at 448: take the dtype bfloat16 or float32"),
        ("float8_e5m2", 7e4, "float8_e5m2 ends at 57344: take the dtype bfloat16 or float32"),
        ("float32", -1e39, "float32 ends at 3.40282e.38: take the dtype float64"),
    ],
)
def test_a_value_beyond_the_range_of_the_stored_dtype_is_refused(path, dtype, value, advice):
    tensors = {"fits": np.ones(2), "too.large": np.array([[1, value]], np.float64 if dtype == "float32" else "f4")}
    size = f"{abs(value):g}".replace("+", ".")
    with pytest.raises(WeightsError, match=rf"'too\.large' holds a value of size {size}, and {advice}"):
        ours.write(path, tensors, dtype=dtype)
    assert_same(ours.read(path), TENSORS)


def test_the_largest_value_of_a_dtype_is_stored(tmp_path):
    for dtype, largest in LARGEST.items():
        ours.write(tmp_path / "x.safetensors", {"f": np.array([-largest, largest], np.float32)}, dtype=dtype)
        read = ours.read(tmp_path / "x.safetensors")["f"].astype(np.float32)
        np.testing.assert_allclose(read, [-largest, largest], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_already_is_not_called_an_overflow(tmp_path, value):
    with pytest.raises(WeightsError, match=r"'f' holds 1 values that are NaN or infinity before.*take another file"):
        ours.write(tmp_path / "x.safetensors", {"f": np.array([value, 1e9, 1], np.float32)}, dtype="float16")


def test_tensors_are_mapped_read_only(path):
    array = ours.read(path)["a.weight"]
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1


def test_a_failed_write_leaves_the_old_file_and_no_partial_one(path):
    class Broken:
        shape, dtype = (2,), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            raise OSError("the device went away")

    with pytest.raises(OSError, match="went away"):
        ours.write(path, {"x": Broken()})
    assert_same(ours.read(path), TENSORS)
    assert [p.name for p in path.parent.iterdir()] == ["x.safetensors"]


def shard(folder, files, weight_map):
    for name, tensors in files.items():
        ours.write(folder / name, tensors)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


def test_shards_are_read_as_one(tmp_path):
    one, two = {"a": np.ones(2)}, {"b": np.zeros(3, np.float32)}
    shard(tmp_path, {"m-1.safetensors": one, "m-2.safetensors": two}, {"a": "m-1.safetensors", "b": "m-2.safetensors"})
    assert_same(ours.read(tmp_path), one | two)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../m-1.safetensors"}, "must be a plain .safetensors file name"),
        ({"a": "/etc/passwd"}, "must be a plain .safetensors file name"),
        ({"a": "missing.safetensors"}, r"missing\.safetensors: no such file"),
        ({"a": "m-1.safetensors", "z": "m-1.safetensors"}, r"z is not in m-1\.safetensors"),
        ({"a": "m-1.safetensors", "b": "m-2.safetensors"}, "in more than one shard"),
        ({}, "weight_map must map"),
        ({"a": 3}, "weight_map must map"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, weight_map, message):
    files = {"m-1.safetensors": {"a": np.ones(2)}, "m-2.safetensors": {"a": np.ones(2), "b": np.ones(2)}}
    index = shard(tmp_path, files, weight_map)
    with pytest.raises(WeightsError, match=message):
        ours.read(index)


def test_a_truncated_file_names_expected_and_actual_bytes(path):
    data = path.read_bytes()
    path.write_bytes(data[:-5])
    size = sum(array.nbytes for array in TENSORS.values())
    with pytest.raises(
        WeightsError, match=rf"x\.safetensors: truncated.* {size} tensor bytes, the file has {size - 5}"
    ):
        ours.read(path)


def entry(begin, end, shape=(2,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_a_malformed_header_is_refused_in_one_sentence(tmp_path):
    for header, data, message in [
        ({"a": entry(0, 8), "b": entry(4, 12)}, 12, "'b' at byte 4 overlaps 'a'"),
        ({"a": entry(0, 8), "b": entry(12, 20)}, 20, "leaves a gap after 'a'"),
        ({"a": entry(0, 8)}, 9, "too long"),
        ({"a": entry(0, 4)}, 4, r"'a' F32\[2\] needs 8 bytes, its offsets give 4"),
        ({"a": entry(8, 0)}, 8, "needs 8 bytes"),
        ({"a": entry(0, 8, shape=(-2,))}, 8, "'a' needs a dtype, a shape"),
        ({"a": entry(0, 8, shape=(2.0,))}, 8, "'a' needs a dtype, a shape"),
        ({"a": entry(0, 8, shape=(True, 2))}, 8, "'a' needs a dtype, a shape"),
        ({"a": entry(0, 8, dtype="PICKLE")}, 8, "dtype .PICKLE.; known are"),
        ({"a": entry(0, 8, dtype="I\ud83d64")}, 8, r"dtype 'I.ud83d64'; known are"),
        ({"a": 3}, 0, "'a' needs a dtype, a shape"),
        ({"a": entry(0, 8, shape=(10**4000,))}, 8, "'a' needs a dtype, a shape"),
        ({"a": entry(0, 8, shape=(2**60,) * 30)}, 8, "needs .* bytes"),
        ({"a": entry(0, 8, shape=(1,) * 10_000)}, 8, "'a' needs a dtype, a shape"),
        ({"a" * 10_000: entry(0, 8, dtype="F" * 10_000)}, 8, "known are"),
        ({"__metadata__": {"k": 1}}, 0, "must map text to text"),
        (b'{"a": {}, "a": {}}', 0, "a name occurs twice"),
        (b"[1]", 0, "is a list, not an object"),
        (b"\xff\xfe", 0, "cannot be read"),
        (b"[" * 100_000, 0, "cannot be read"),
    ]:
        bad = write_raw(tmp_path / "bad.safetensors", header, bytes(data))
        with pytest.raises(WeightsError, match=message) as caught:
            ours.read(bad)
        assert "bad.safetensors" in str(caught.value)
        assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("data", [b"", b"1234567", b"\xff" * 64, (2**40).to_bytes(8, "little") + b"{}"])
def test_what_is_no_safetensors_file_is_refused(tmp_path, data):
    (tmp_path / "x.safetensors").write_bytes(data)
    with pytest.raises(WeightsError, match="truncated, or not safetensors"):
        ours.read(tmp_path)


def test_a_git_lfs_pointer_in_place_of_weights_is_named(tmp_path):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4932\n"
    for name in ("model.safetensors", "model.safetensors.index.json"):
        (tmp_path / name).write_text(pointer)
        with pytest.raises(
            WeightsError, match=rf"{name} is a git-lfs pointer, not the file itself: run `git lfs pull`"
        ):
            ours.read(tmp_path / name)


def test_a_huge_header_is_not_read(tmp_path):
    with (tmp_path / "x.safetensors").open("wb") as file:
        file.write((2**30).to_bytes(8, "little"))
        file.truncate(2**30 + 8)  # sparse
    with pytest.raises(WeightsError, match="at most 16777216 are read"):
        ours.read(tmp_path)


def test_mutated_files_raise_only_our_error(path):
    good, rng = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data) if rng.random() < 0.2 else 400)] = rng.randrange(256)
        path.write_bytes(bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.2 else data))
        try:
            ours.read(path)
        except WeightsError:
            refused += 1
    assert refused > 100


def test_the_standard_name_wins_among_several_files(tmp_path):
    for name in ("model.fp16.safetensors", "other.safetensors"):
        ours.write(tmp_path / name, {"x": np.ones(1)})
    with pytest.raises(WeightsError, match=r"expected one .* found model\.fp16\.safetensors, other\.safetensors"):
        ours.read(tmp_path)
    ours.write(tmp_path / "diffusion_pytorch_model.safetensors", {"chosen": np.ones(1)})
    assert set(ours.read(tmp_path)) == {"chosen"}


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="found none"):
        ours.read(tmp_path)
