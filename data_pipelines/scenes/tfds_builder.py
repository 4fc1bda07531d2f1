"""The scenes world as a TFDS dataset of ArrayRecord files, written and read without TensorFlow.

    builder = ScenesWorld(config="quickstart", data_dir=DIR)
    builder.download_and_prepare()
    train = builder.as_data_source(split="train")

A record is an image (PNG), its caption, its background and its objects. Splits are streams of different seeds.
"""

import dataclasses
import io
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_pipelines.scenes import outlines, palette, world
from data_pipelines.scenes.source import Scenes
from data_pipelines.scenes.world import World


@dataclasses.dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """A world and the size of its splits."""

    world: World
    train: int = 50_000
    test: int = 2_000


class ScenesWorld(tfds.core.GeneratorBasedBuilder):
    """Captioned images of coloured shapes."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: ClassVar = [
        ScenesConfig(name="quickstart", description="Three shapes at 32 pixels.", world=world.QUICKSTART),
        ScenesConfig(name="shapes64", description="Eight shapes at 64 pixels.", world=world.SHAPES_64),
    ]

    def __init__(self, *, file_format: str = "array_record", **kwargs: Any) -> None:
        super().__init__(file_format=file_format, **kwargs)

    @property
    def _chosen(self) -> ScenesConfig:
        if not isinstance(self.builder_config, ScenesConfig):
            raise TypeError(f"config is {self.builder_config}; give a ScenesConfig or the name of a built-in one.")
        return self.builder_config

    def _info(self) -> tfds.core.DatasetInfo:
        size = self._chosen.world.image_size
        each = {
            "shape": tfds.features.ClassLabel(names=list(outlines.SHAPES)),
            "color": tfds.features.ClassLabel(names=list(palette.COLORS)),
            "size": tfds.features.ClassLabel(names=["small", "large"]),
            **{name: tfds.features.Scalar(np.float32) for name in ("x", "y", "radius", "rotation")},
        }
        features = {
            "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
            "caption": tfds.features.Text(),
            "background": tfds.features.ClassLabel(names=list(palette.BACKGROUNDS)),
            "objects": tfds.features.Sequence(each),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("caption", "image")
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        config = self._chosen
        return {
            "train": self._generate_examples(Scenes(config.world, seed=0, length=config.train)),
            "test": self._generate_examples(Scenes(config.world, seed=1, length=config.test)),
        }

    def _generate_examples(self, scenes: Scenes) -> Iterator[tuple[int, dict[str, Any]]]:
        for i in range(len(scenes)):
            element, scene = scenes[i], scenes.scene(i)
            # Encoded by hand: TFDS needs TensorFlow to encode an array.
            image = io.BytesIO()
            Image.fromarray(element["pixels"][0]).save(image, format="PNG")
            image.seek(0)
            objects = [o._asdict() for o in scene.objects]
            caption, background = element["caption"], scene.background
            yield i, {"image": image, "caption": caption, "background": background, "objects": objects}
