import io
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import sources

tfds = pytest.importorskip("tensorflow_datasets")
ROOT = pathlib.Path(__file__).parents[3]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, pictures, png):
    class Tiny(tfds.core.GeneratorBasedBuilder):
        """Eight images."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
                "caption": tfds.features.Text(),
                "label": tfds.features.ClassLabel(names=["cat", "dog"]),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(8):
                yield i, {"image": io.BytesIO(png(pictures[i])), "caption": f"caption {i}", "label": i % 2}

    tfds.disable_progress_bar()
    builder = Tiny(data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record")
    builder.download_and_prepare()
    return str(builder.data_dir)


def test_every_prepared_sample_is_read(prepared, pictures):
    source = sources.Tfds(prepared)
    assert len(source) == 8
    numbers = []
    for sample in source:
        numbers.append(int(sample["caption"].removeprefix("caption ")))
        np.testing.assert_array_equal(sample["pixels"], pictures[numbers[-1]][None])
    assert sorted(numbers) == list(range(8))
    assert len(sources.Tfds(prepared, split="train[:3]")) == 3


def test_class_labels_become_captions(prepared):
    numbers = [int(sample["caption"].removeprefix("caption ")) for sample in sources.Tfds(prepared)]
    labelled = sources.Tfds(prepared, caption="label", template="one {}")
    assert [sample["caption"] for sample in labelled] == [("one cat", "one dog")[i % 2] for i in numbers]
    assert sources.Tfds(prepared, caption=None)[0]["caption"] == ""


def test_wrong_paths_features_and_splits_are_refused_in_one_sentence(prepared, tmp_path):
    with pytest.raises(sources.DatasetError, match=r"holds no dataset_info\.json"):
        len(sources.Tfds(tmp_path))
    with pytest.raises(sources.DatasetError, match=r"no Image feature 'picture'; it has .*image \(Image\)"):
        len(sources.Tfds(prepared, image="picture"))
    with pytest.raises(sources.DatasetError, match="no Text or ClassLabel feature 'text'"):
        len(sources.Tfds(prepared, caption="text"))
    with pytest.raises(sources.DatasetError, match="split 'nowhere'"):
        len(sources.Tfds(prepared, split="nowhere"))


def test_a_source_pickles_and_its_fingerprint_knows_the_split(prepared):
    source = sources.Tfds(prepared)
    assert pickle.loads(pickle.dumps(source))[2]["caption"] == source[2]["caption"]
    assert source.fingerprint() != sources.Tfds(prepared, split="train[:3]").fingerprint()


def test_a_rewritten_record_or_label_is_another_fingerprint_and_a_copy_is_not(prepared, tmp_path):
    copy = shutil.copytree(prepared, tmp_path / "tiny" / "1.0.0")
    seen = {sources.Tfds(prepared).fingerprint()}
    assert sources.Tfds(copy).fingerprint() in seen
    (labels,) = copy.glob("label.labels.txt")
    labels.write_text(labels.read_text().replace("cat", "cot"))
    seen.add(sources.Tfds(copy).fingerprint())
    (records,) = copy.glob("*array_record*")
    data = bytearray(records.read_bytes())
    data[len(data) // 2] ^= 1
    records.write_bytes(data)
    seen.add(sources.Tfds(copy).fingerprint())
    assert len(seen) == 3


def test_tensorflow_is_never_imported(prepared, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('tensorflow was imported')")
    code = f"""
import sys
from data_pipelines import sources
source = sources.Tfds({prepared!r})
print(len(source), source[0]["pixels"].shape, "tensorflow" in sys.modules, "jax" in sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert result.stdout.split("\n")[0] == "8 (1, 8, 8, 3) False False", result.stderr
