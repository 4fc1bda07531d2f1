"""Random-access sources: every one has a length, gives `source[i]` as a dict with pixels and a caption, and pickles."""

from data_pipelines.sources.array_record import ArrayRecords
from data_pipelines.sources.base import CorruptRecord, DatasetError, Source
from data_pipelines.sources.folder import Folder
from data_pipelines.sources.memory import Arrays, InMemory
from data_pipelines.sources.parquet import Parquet
from data_pipelines.sources.tfds import Tfds
from data_pipelines.sources.video import VideoDecoder
from data_pipelines.sources.webdataset import WebDataset

__all__ = [
    "ArrayRecords",
    "Arrays",
    "CorruptRecord",
    "DatasetError",
    "Folder",
    "InMemory",
    "Parquet",
    "Source",
    "Tfds",
    "VideoDecoder",
    "WebDataset",
]
