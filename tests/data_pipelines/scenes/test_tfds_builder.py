import sys

import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.scenes import outlines, palette

tfds_builder = pytest.importorskip("data_pipelines.scenes.tfds_builder", exc_type=ImportError)


@pytest.fixture(scope="module")
def builder(tmp_path_factory):
    config = tfds_builder.ScenesConfig(name="tiny", world=scenes.QUICKSTART, train=12, test=4)
    built = tfds_builder.ScenesWorld(config=config, data_dir=tmp_path_factory.mktemp("tfds"))
    built.download_and_prepare()
    return built


@pytest.mark.parametrize(("split", "seed", "count"), [("train", 0, 12), ("test", 1, 4)])
def test_records_are_the_scenes_of_the_splits_seed(builder, split, seed, count):
    records, source = builder.as_data_source(split=split), scenes.Scenes(seed=seed)
    assert len(records) == count
    for i in range(count):
        scene, picture = source.scene(i), source[i]["pixels"][0]
        (record,) = [r for r in records if np.array_equal(r["image"], picture)]  # TFDS shuffles
        assert record["caption"].decode() == source[i]["caption"]
        assert list(palette.BACKGROUNDS)[record["background"]] == scene.background
        objects = record["objects"]
        assert [list(outlines.SHAPES)[k] for k in objects["shape"]] == [o.shape for o in scene.objects]
        np.testing.assert_allclose(objects["x"], [o.x for o in scene.objects], rtol=1e-6)


def test_files_are_array_records_and_tensorflow_is_never_imported(builder):
    assert list(builder.data_path.glob("*.array_record*"))
    assert "tensorflow" not in sys.modules


def test_builtin_configurations_name_shipped_worlds(tmp_path):
    names = [config.name for config in tfds_builder.ScenesWorld.BUILDER_CONFIGS]
    for name in names:
        tfds_builder.ScenesWorld(config=name, data_dir=tmp_path)
    assert names == ["quickstart", "shapes64"]
