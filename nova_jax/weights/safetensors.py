"""Safetensors files, read by memory mapping and written atomically.

A file is an 8-byte little-endian length, that many bytes of JSON, and the tensors' bytes back to back:

    {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ..., "__metadata__": {"key": "text"}}

A file may come from anywhere, so its header is checked completely before anything is mapped: sizes, offsets, overlaps,
gaps. Nothing in it is ever executed. Format: https://github.com/huggingface/safetensors (section "Format"). We parse it
here because the reference reader for numpy refuses a whole file when one tensor in it is float8.
"""

import codecs
import contextlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from nova_jax import atomic, git_lfs

MAX_HEADER_BYTES = 16 * 2**20
MAX_DIMS, MAX_SIZE = 32, 2**62
METADATA_KEY = "__metadata__"
DTYPES: dict[str, np.dtype] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "U8": np.uint8,
        "I8": np.int8,
        "U16": np.uint16,
        "I16": np.int16,
        "U32": np.uint32,
        "I32": np.int32,
        "U64": np.uint64,
        "I64": np.int64,
        "F16": np.float16,
        "BF16": ml_dtypes.bfloat16,
        "F32": np.float32,
        "F64": np.float64,
        "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2,
    }.items()
}
FLOATS = ("bfloat16", "float32", "float64")  # wider in range than float16, from small to large
DAMAGED = "the file is damaged or its training diverged: take another file or an earlier checkpoint"
NAMES = {dtype: name for name, dtype in DTYPES.items()}


class WeightsError(ValueError):
    """A weight file or folder that cannot be used, in one sentence that names it."""


class TensorInfo(NamedTuple):
    """Where one tensor lies: byte offsets count from the end of the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class Header(NamedTuple):
    """The checked header of one file; `start` is the offset of the first tensor byte in the file."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    start: int


def read(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Tensors of a file, of a `*.safetensors.index.json`, or of a folder that holds one of either.

    The arrays are read-only views of memory-mapped files: nothing is read from disk before it is used.

    Raises:
        WeightsError: no file or several, a shard is missing, or a file is damaged.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        path = find(path)
    return _read_index(path) if path.name.endswith(".json") else _read_file(path)


def read_header(path: str | os.PathLike[str]) -> Header:
    """Names, dtypes, shapes and metadata of one file, after checking that they fit the file's size.

    Raises:
        WeightsError: the file is truncated, too long, or its header is malformed.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    size = path.stat().st_size
    _refuse_pointer(path)
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise WeightsError(
                f"{path}: truncated, or not safetensors: its header should end at {8 + length}, has {size}"
            )
        if length > MAX_HEADER_BYTES:
            raise WeightsError(f"{path}: header of {length} bytes, at most {MAX_HEADER_BYTES} are read")
        raw = _parse_json(file.read(length), path)
    metadata = raw.pop(METADATA_KEY, {})
    if not (isinstance(metadata, dict) and all(isinstance(value, str) for value in metadata.values())):
        raise WeightsError(f"{path}: {METADATA_KEY} must map text to text")
    tensors = {name: _tensor_info(name, entry, path) for name, entry in raw.items()}
    _check_layout(tensors, size - 8 - length, path)
    return Header(tensors, metadata, 8 + length)


def write(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    *,
    dtype: Any = None,
) -> None:
    """Writes one file; a reader sees the old file or the complete new one, never a part.

    Args:
        path: the file.
        tensors: numpy or JAX arrays; they come to the host one at a time.
        metadata: text stored in the header.
        dtype: stored dtype of floating-point tensors; None: as they are.

    Raises:
        WeightsError: a dtype that the format does not have, or a value that `dtype` cannot hold; see `cast`.
    """
    path = pathlib.Path(path)
    stored = {name: _stored_dtype(name, array, dtype) for name, array in tensors.items()}
    order = sorted(stored, key=lambda name: (-stored[name].itemsize, name))  # wide dtypes first: all stay aligned
    header: dict[str, Any] = {METADATA_KEY: dict(metadata)} if metadata else {}
    offset = 0
    for name in order:
        shape = list(tensors[name].shape)
        end = offset + math.prod(shape) * stored[name].itemsize
        header[name] = {"dtype": NAMES[stored[name]], "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)

    with atomic.replacing(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            array = np.ascontiguousarray(cast(name, tensors[name], stored[name]))
            file.write(array.reshape(-1).view(np.uint8).data)


def _stored_dtype(name: str, array: Any, dtype: Any) -> np.dtype:
    if dtype is None or not jnp.issubdtype(array.dtype, jnp.floating):
        wanted, allowed = array.dtype, list(NAMES)
    else:
        wanted, allowed = dtype, [known for known in NAMES if jnp.issubdtype(known, jnp.floating)]
    with contextlib.suppress(TypeError):
        if (known := jnp.dtype(wanted)) in allowed:
            return known
    raise WeightsError(f"{name!r} cannot be stored as {wanted}; use one of {', '.join(map(str, allowed))}")


def cast(name: str, array: Any, dtype: Any, *, copy: bool | None = None) -> np.ndarray:
    """The array in another dtype: values are rounded, and none becomes infinite. `copy` None copies where it must.

    Raises:
        WeightsError: a value lies beyond the range of `dtype`, or is not finite in `array` itself.
    """
    array = np.asarray(array)
    with np.errstate(over="ignore"):  # reported below, by name
        result = np.array(array, dtype, order="C", copy=copy)
    if not _is_narrower(result.dtype, array.dtype) or np.isfinite(result).all():
        return result
    if damaged := np.count_nonzero(~np.isfinite(array)):
        raise WeightsError(
            f"{name!r} holds {damaged} values that are NaN or infinity before it becomes {result.dtype}; {DAMAGED}"
        )
    largest = max(float(array.max()), -float(array.min()))
    wider = [kind for kind in FLOATS if float(jnp.finfo(kind).max) >= largest][:2]
    raise WeightsError(
        f"{name!r} holds a value of size {largest:g}, and {result.dtype} ends at "
        f"{float(jnp.finfo(result.dtype).max):g}: take the dtype {' or '.join(wider)}"
    )


def _is_narrower(target: np.dtype, source: np.dtype) -> bool:
    """Whether a finite value of `source` may be infinite or NaN in `target`."""
    if not jnp.issubdtype(target, jnp.floating) or source.kind == "b":
        return False
    limits = jnp.finfo(source) if jnp.issubdtype(source, jnp.floating) else jnp.iinfo(source)
    return float(limits.max) > float(jnp.finfo(target).max)


def find(folder: pathlib.Path) -> pathlib.Path:
    """The weight file or shard index of a model folder: the libraries' standard names first, else the only one there.

    Raises:
        WeightsError: there is none, or several and none has a standard name.
    """
    for stem in ("model", "diffusion_pytorch_model"):
        for name in (f"{stem}.safetensors", f"{stem}.safetensors.index.json"):
            if (folder / name).is_file():
                return folder / name
    found = sorted(folder.glob("*.safetensors.index.json")) or sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        what = ", ".join(path.name for path in found) or "none"
        raise WeightsError(f"{folder}: expected one .safetensors file or shard index, found {what}")
    return found[0]


def parse_json_file(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object from a small file of unknown origin.

    Raises:
        WeightsError: the file is missing, larger than a header may be, or not a JSON object.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    _refuse_pointer(path)
    if path.stat().st_size > MAX_HEADER_BYTES:
        raise WeightsError(f"{path}: {path.stat().st_size} bytes, at most {MAX_HEADER_BYTES} are read")
    return _parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8), path)


def _refuse_pointer(path: pathlib.Path) -> None:
    if git_lfs.is_pointer_file(path):
        raise WeightsError(f"{path} is {git_lfs.POINTER}")


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    header = read_header(path)
    data = np.asarray(np.memmap(path, np.uint8, mode="r"))[header.start :]
    return {name: data[i.begin : i.end].view(i.dtype).reshape(i.shape) for name, i in header.tensors.items()}


def _read_index(path: pathlib.Path) -> dict[str, np.ndarray]:
    files = parse_json_file(path).get("weight_map")
    if not (isinstance(files, dict) and files and all(isinstance(name, str) for name in files.values())):
        raise WeightsError(f"{path}: weight_map must map tensor names to file names")
    shards: dict[str, dict[str, np.ndarray]] = {}
    for name in sorted(set(files.values())):
        if pathlib.PurePosixPath(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise WeightsError(f"{path}: shard {name!r} must be a plain .safetensors file name in the same folder")
        shards[name] = _read_file(path.parent / name)
    if absent := sorted(tensor for tensor, file in files.items() if tensor not in shards[file]):
        raise WeightsError(f"{path}: {absent[0]} is not in {files[absent[0]]} ({len(absent)} such tensors)")
    if sum(map(len, shards.values())) != len(merged := {k: v for shard in shards.values() for k, v in shard.items()}):
        raise WeightsError(f"{path}: some tensors are in more than one shard")
    return merged


def _parse_json(data: bytes, path: pathlib.Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(result := dict(pairs)) != len(pairs):
            raise ValueError("a name occurs twice")
        return result

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path}: its JSON cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path}: its JSON is a {type(value).__name__}, not an object")
    return value


def _tensor_info(name: str, entry: Any, path: pathlib.Path) -> TensorInfo:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            pass
        case _:
            dtype, shape, begin, end = "", [-1], 0, 0
    if len(shape) > MAX_DIMS or not all(type(n) is int and 0 <= n < MAX_SIZE for n in (*shape, begin, end)):
        entry = f"{entry!s:.100}"
        raise WeightsError(f"{path}: {name!r:.80} needs a dtype, a shape and two data_offsets, has {entry}")
    if dtype not in DTYPES:
        raise WeightsError(f"{path}: {name!r:.80} has dtype {dtype!r:.20}; known are {', '.join(DTYPES)}")
    expected = math.prod(shape) * DTYPES[dtype].itemsize
    if end - begin != expected:
        raise WeightsError(
            f"{path}: {name!r:.80} {dtype}{shape} needs {expected} bytes, its offsets give {end - begin}"
        )
    return TensorInfo(DTYPES[dtype], tuple(shape), begin, end)


def _check_layout(tensors: Mapping[str, TensorInfo], available: int, path: pathlib.Path) -> None:
    """The tensors must tile the bytes after the header exactly: no overlap, no gap, nothing cut off or left over."""
    at, previous = 0, "the header"
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != at:
            what = "overlaps" if info.begin < at else "leaves a gap after"
            raise WeightsError(f"{path}: {name!r:.80} at byte {info.begin} {what} {previous!r:.80}, which ends at {at}")
        at, previous = info.end, name
    if at != available:
        what = "truncated" if available < at else "too long"
        raise WeightsError(f"{path}: {what}: its header describes {at} tensor bytes, the file has {available}")
