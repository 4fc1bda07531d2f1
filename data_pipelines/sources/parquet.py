"""Parquet files with a column of encoded images and one of captions.

Parquet is read by row group, so random access keeps the last few groups in memory. When the data do not fit there,
convert them once (`data_pipelines.encoding.encode_source`, or `array_record.write`).
"""

import dataclasses
import functools
import logging
import threading
from typing import Any

import numpy as np

from data_pipelines import images
from data_pipelines.sources import base, digests

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Parquet(base.Source):
    """Rows of one or more Parquet files, in file order.

    Attributes:
        paths: a file, a folder of .parquet files, a glob, a range, or several; see `base.find_files`.
        image: column of encoded images: binary, or a struct with a binary field `bytes`.
        caption: column of texts, or None.
        decoder: how images become arrays.
        cached_groups: row groups kept in memory.
    """

    paths: base.Paths
    _: dataclasses.KW_ONLY
    image: str = "image"
    caption: str | None = "caption"
    decoder: images.Decoder = images.ON_WHITE
    cached_groups: int = 16

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len: pixels uint8 (1, h, w, 3), caption."""
        place = int(np.searchsorted(self._starts, index, side="right")) - 1
        path, group, first_row, _ = self._groups[place]
        row = index - int(self._starts[place])
        try:
            with self._lock:  # one thread loads a group, the others wait for it and then decode in parallel
                pictures, captions = self._load_group(path, group)
            data, caption = pictures[row].as_py(), "" if captions is None else captions[row].as_py()
            if data is None or caption is None:
                raise ValueError(f"the {'image' if data is None else 'caption'} is null")
            return {"pixels": self.decoder(data), "caption": base.check_caption(caption)}
        except (ValueError, OSError) as error:  # pyarrow reports damaged pages as either
            raise base.CorruptRecord(path, first_row + row, str(error)) from error

    def fingerprint(self) -> str:
        """Hash of each file's name and content."""
        return digests.fingerprint(self._files, self.image, self.caption, self.decoder)

    @functools.cached_property
    def _lock(self) -> threading.Lock:
        return threading.Lock()

    @functools.cached_property
    def _files(self) -> tuple[str, ...]:
        return base.find_files(self.paths, ".parquet")

    @functools.cached_property
    def _groups(self) -> list[tuple[str, int, int, int]]:
        """(file, row group, its first row in the file, its rows) of every row group."""
        groups = []
        for path in self._files:
            with _open(path) as file:
                _check_columns(path, file.schema_arrow, self.image, self.caption)
                counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            firsts = np.cumsum([0, *counts]).tolist()
            groups += [(path, group, firsts[group], count) for group, count in enumerate(counts)]
        return groups

    @functools.cached_property
    def _starts(self) -> np.ndarray:
        """Index of each row group's first sample, and the total."""
        starts = np.cumsum([0, *(rows for *_, rows in self._groups)])
        if not starts[-1]:
            raise base.DatasetError(f"{', '.join(self._files)} hold no rows: give another file")
        if len(self._groups) > self.cached_groups:
            logger.warning(
                "%d row groups, but only %d are kept in memory: shuffled reading loads one for almost every sample; "
                "raise cached_groups, or convert the data to ArrayRecord",
                len(self._groups),
                self.cached_groups,
            )
        _ = self._lock, self._load_group  # made before any thread asks for them
        return starts

    @functools.cached_property
    def _load_group(self) -> Any:
        @functools.lru_cache(self.cached_groups)
        def load(path: str, group: int) -> tuple[Any, Any]:
            columns = [self.image, *([] if self.caption is None else [self.caption])]
            with _open(path) as file:
                table = file.read_row_group(group, columns=columns)
            pictures = table.column(self.image)
            if pictures.type.num_fields:
                compute = base.require("pyarrow.compute", "reading Parquet files")
                pictures = compute.struct_field(pictures, "bytes")
            return pictures, None if self.caption is None else table.column(self.caption)

        return load


def _open(path: str) -> Any:
    parquet = base.require("pyarrow.parquet", "reading Parquet files")
    try:
        return parquet.ParquetFile(path, page_checksum_verification=True)
    except (ValueError, OSError) as error:
        raise base.DatasetError(f"{path} cannot be read as Parquet ({error}): replace it") from error


def _check_columns(path: str, schema: Any, image: str, caption: str | None) -> None:
    types = base.require("pyarrow.types", "reading Parquet files")
    columns = ", ".join(f"{field.name} ({field.type})" for field in schema)
    if image not in schema.names or not _holds_bytes(types, schema.field(image).type):
        raise base.DatasetError(f"{path} has no binary column {image!r}; it has {columns}: name the images with image=")
    if caption is None:
        return
    if caption not in schema.names or not _holds_text(types, schema.field(caption).type):
        raise base.DatasetError(
            f"{path} has no text column {caption!r}; it has {columns}: name the captions with caption=, or set "
            "caption=None"
        )


def _holds_text(types: Any, kind: Any) -> bool:
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _holds_bytes(types: Any, kind: Any) -> bool:
    if types.is_struct(kind):
        return "bytes" in [field.name for field in kind] and _holds_bytes(types, kind.field("bytes").type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
