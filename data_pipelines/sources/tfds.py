"""Datasets prepared by TensorFlow Datasets in its ArrayRecord form, read without TensorFlow and without a network."""

import dataclasses
import functools
import os
from typing import Any

from data_pipelines import images
from data_pipelines.sources import base, digests


@dataclasses.dataclass(frozen=True)
class Tfds(base.Source):
    """A split of a prepared dataset.

    Prepare it once where TFDS may download: `tfds.builder(NAME, file_format="array_record").download_and_prepare()`.

    Attributes:
        path: its folder, with dataset_info.json, for example `~/tensorflow_datasets/cifar10/3.0.2`.
        split: as TFDS spells it, for example `train[:90%]`.
        image: feature with the image.
        caption: feature with the text, or with a class label, or None.
        template: how a class label's name becomes a caption.
        decoder: how images become arrays.
    """

    path: str | os.PathLike[str]
    _: dataclasses.KW_ONLY
    split: str = "train"
    image: str = "image"
    caption: str | None = "caption"
    template: str = "a photo of a {}"
    decoder: images.Decoder = images.ON_WHITE

    def __len__(self) -> int:
        return len(self._data)

    def read(self, index: int) -> base.Sample:
        """The sample at 0 <= index < len: pixels uint8 (1, h, w, 3), caption."""
        try:
            features = self._data[index]
            caption = "" if self.caption is None else self._caption(features[self.caption])
            return {"pixels": self.decoder(features[self.image]), "caption": caption}
        except (ValueError, RuntimeError) as error:
            raise base.CorruptRecord(f"{self._builder.info.full_name} {self.split}", index, str(error)) from error

    def fingerprint(self) -> str:
        """Hash of the dataset's name and version, the split's files, and what describes them (names of labels)."""
        info, folder = self._builder.info, os.path.expanduser(os.fspath(self.path))
        data = {os.path.basename(file) for split in info.splits.values() for file in map(os.fspath, split.filepaths)}
        described = [os.path.join(folder, name) for name in sorted(os.listdir(folder)) if name not in data]
        files = [*map(os.fspath, info.splits[self.split].filepaths), *described]
        choices = (info.full_name, self.split, self.image, self.caption, self.template, self.decoder)
        return digests.fingerprint(files, *choices)

    def _caption(self, value: Any) -> str:
        if isinstance(value, bytes):
            return base.decode_caption(value)
        assert self.caption is not None
        return self.template.format(self._builder.info.features[self.caption].int2str(int(value)))

    @functools.cached_property
    def _builder(self) -> Any:
        tfds = base.require("tensorflow_datasets", "reading TFDS datasets")
        path = os.path.expanduser(os.fspath(self.path))
        if not os.path.exists(os.path.join(path, "dataset_info.json")):
            raise base.DatasetError(
                f"{path} holds no dataset_info.json: give a prepared version's folder, NAME/CONFIG/VERSION, or prepare "
                'one with tfds.builder(NAME, file_format="array_record").download_and_prepare()'
            )
        return tfds.builder_from_directory(path)

    @functools.cached_property
    def _data(self) -> Any:
        tfds = base.require("tensorflow_datasets", "reading TFDS datasets")
        info = self._builder.info
        kinds = {name: type(feature).__name__ for name, feature in info.features.items()}
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        if kinds.get(self.image) != "Image":
            raise base.DatasetError(
                f"{info.full_name} has no Image feature {self.image!r}; it has {listed}: set image="
            )
        if self.caption is not None and kinds.get(self.caption) not in ("Text", "ClassLabel"):
            raise base.DatasetError(
                f"{info.full_name} has no Text or ClassLabel feature {self.caption!r}; it has {listed}: set caption="
            )
        try:
            keep_encoded = {self.image: tfds.decode.SkipDecoding()}  # our decoder checks headers first
            return self._builder.as_data_source(split=self.split, decoders=keep_encoded)
        except (ValueError, NotImplementedError) as error:
            raise base.DatasetError(f"{info.full_name} cannot be read at split {self.split!r}: {error}") from error
