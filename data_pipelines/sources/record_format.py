"""The bytes of one sample in our internal format; `sources.array_record` writes and reads files of them.

    "NOVA" | header length, uint32 | header, JSON in UTF-8 | the arrays one after another

The header is `{"fields": {name: JSON value}, "arrays": [[name, dtype, shape], ...]}`. Arrays are little-endian in C
order; the dtype "bytes" stands for a byte string, such as an encoded image. Nothing in a record can name code, and
every length is checked against the bytes at hand before it is used.
"""

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

MAGIC = b"NOVA"
PREFIX = struct.Struct("<4sI")
BYTES = "bytes"
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
NUMPY = ("bool", *INTEGERS, "float16", "float32", "float64")
DTYPES = {name: np.dtype(name).newbyteorder("<") for name in NUMPY} | {"bfloat16": np.dtype(ml_dtypes.bfloat16)}


class BadRecord(ValueError):
    """Bytes that `encode` did not write."""


def encode(sample: Mapping[str, Any]) -> bytes:
    """Bytes of a sample: numpy arrays, byte strings, and values that JSON can hold.

    Raises:
        TypeError: a value is none of these.
    """
    arrays, fields, parts = [], {}, []
    for name, value in sample.items():
        if isinstance(value, bytes):
            arrays.append([name, BYTES, [len(value)]])
            parts.append(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            if value.dtype.name not in DTYPES:
                raise TypeError(f"{name} has dtype {value.dtype}; a record holds {', '.join(DTYPES)}, text or bytes")
            arrays.append([name, value.dtype.name, list(value.shape)])
            parts.append(value.astype(DTYPES[value.dtype.name], copy=False).tobytes())
        else:
            fields[name] = value
    header = json.dumps({"fields": fields, "arrays": arrays}, ensure_ascii=False).encode(errors="surrogatepass")
    return b"".join([PREFIX.pack(MAGIC, len(header)), header, *parts])


def decode(data: bytes) -> dict[str, Any]:
    """The sample that `encode` wrote; arrays are read-only.

    Raises:
        BadRecord: the bytes are not a record, or its lengths do not add up.
    """
    if len(data) < PREFIX.size or data[: len(MAGIC)] != MAGIC:
        raise BadRecord("the record does not start with the mark of this format")
    offset = PREFIX.size + PREFIX.unpack_from(data)[1]
    if offset > len(data):
        raise BadRecord(f"the header should end at byte {offset} of {len(data)}")
    try:
        header = json.loads(data[PREFIX.size : offset])
        sample, arrays = dict(header["fields"]), [(str(n), str(d), tuple(map(int, s))) for n, d, s in header["arrays"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadRecord(f"the header cannot be read: {error}") from error
    for name, dtype, shape in arrays:
        sample[name], offset = _take(data, offset, dtype, shape)
    if offset != len(data):
        raise BadRecord(f"{len(data) - offset} bytes are left over")
    return sample


def _take(data: bytes, offset: int, dtype: str, shape: tuple[int, ...]) -> tuple[Any, int]:
    """The array at `offset`, and where it ends."""
    if min(shape, default=0) < 0 or not (dtype in DTYPES or (dtype == BYTES and len(shape) == 1)):
        raise BadRecord(f"an array of dtype {dtype!r} and shape {shape} cannot be")
    count = math.prod(shape)
    end = offset + count * (1 if dtype == BYTES else DTYPES[dtype].itemsize)
    if end > len(data):
        raise BadRecord(f"an array should end at byte {end} of {len(data)}")
    if dtype == BYTES:
        return data[offset:end], end
    try:
        return np.frombuffer(data[offset:end], DTYPES[dtype]).reshape(shape), end
    except ValueError as error:  # for example a shape of (0, 2**62)
        raise BadRecord(f"an array of dtype {dtype!r} and shape {shape} cannot be: {error}") from error
