"""ArrayRecord files of `records`: our own format, with fast random access, every chunk checked by its hash."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from data_pipelines import images
from data_pipelines.sources import base, digests, record_format

SUFFIX = ".array_record"
READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"  # random access


@dataclasses.dataclass(frozen=True)
class ArrayRecords(base.Source):
    """Samples of one or more ArrayRecord files, in file order.

    A sample is what was written, except that the byte string `image` (an encoded image) is decoded to `pixels`.

    Attributes:
        paths: a file, a folder of .array_record files, a glob, a range, or several; see `base.find_files`.
        decoder: how encoded images become arrays.
    """

    paths: base.Paths
    _: dataclasses.KW_ONLY
    decoder: images.Decoder = images.ON_WHITE

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        row = index - int(self._starts[shard])
        try:
            sample = record_format.decode(self._readers[shard].read([row])[0])
            if isinstance(data := sample.pop("image", None), bytes):
                sample["pixels"] = self.decoder(data)
            if isinstance(sample.get("caption"), str):
                sample["caption"] = base.check_caption(sample["caption"])
        except (ValueError, RuntimeError) as error:  # the reader raises RuntimeError on a damaged chunk
            raise base.CorruptRecord(self._files[shard], row, str(error)) from error
        return sample

    def fingerprint(self) -> str:
        """Hash of each file's name and content."""
        return digests.fingerprint(self._files, self.decoder)

    @functools.cached_property
    def _files(self) -> tuple[str, ...]:
        return base.find_files(self.paths, SUFFIX)

    @functools.cached_property
    def _readers(self) -> list[Any]:
        module = base.require("array_record.python.array_record_module", "reading ArrayRecord files")
        return [module.ArrayRecordReader(path, READER_OPTIONS) for path in self._files]

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Index of each file's first sample, and the total."""
        counts = [reader.num_records() for reader in self._readers]
        for path, count in zip(self._files, counts, strict=True):
            if not count:  # the reader itself is silent about a lost footer
                raise base.DatasetError(
                    f"{path} holds no records: it is empty or cut short; remove it or write it again"
                )
        return np.cumsum([0, *counts])


def write(path: str | os.PathLike[str], samples: Iterable[Mapping[str, Any]]) -> int:
    """Writes samples to an ArrayRecord file, which takes its name only when complete, and returns their number.

    Several processes may write the same file at once: each works on its own, and the last one done gives the name.

    Raises:
        TypeError: a value is neither an array, bytes nor JSON.
    """
    module = base.require("array_record.python.array_record_module", "writing ArrayRecord files")
    partial, count = base.partial_name(path), 0
    writer = module.ArrayRecordWriter(partial, "group_size:1")  # one record per chunk: random access
    try:
        for sample in samples:
            writer.write(record_format.encode(sample))
            count += 1
    finally:
        writer.close()
    with open(partial, "rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)
    return count
