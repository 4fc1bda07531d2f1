import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import sources
from data_pipelines.sources import base


def test_a_corrupt_record_pickles_and_names_shard_key_and_reason():
    fault = pickle.loads(pickle.dumps(sources.CorruptRecord("a.tar", 7, "broken")))
    assert (fault.shard, fault.key, fault.reason) == ("a.tar", 7, "broken")
    assert str(fault) == "a.tar, record 7: broken"


def test_arrays_in_memory_are_a_source():
    latents = np.random.default_rng(0).normal(size=(5, 1, 2, 2, 4)).astype(np.float32)
    source = sources.Arrays(latents, [f"caption {i}" for i in range(5)])
    np.testing.assert_array_equal(source[-1]["latents"], latents[4])
    assert source[3]["caption"] == "caption 3"
    assert sorted(sources.Arrays(latents, name="pixels")[0]) == ["pixels"]
    assert source.fingerprint() != sources.Arrays(latents + 1, source.captions).fingerprint()
    assert source.fingerprint() != sources.Arrays(latents).fingerprint()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(source))[1]["latents"], latents[1])
    with pytest.raises(sources.DatasetError, match="5 samples but 1 captions"):
        sources.Arrays(latents, ["a"])
    with pytest.raises(sources.DatasetError, match="no samples"):
        sources.Arrays(latents[:0])


def test_a_procedural_dataclass_has_the_fingerprint_of_its_fields():
    @dataclasses.dataclass(frozen=True)
    class Numbers:
        seed: int

    assert base.fingerprint(Numbers(1)) == base.fingerprint(Numbers(1))
    assert base.fingerprint(Numbers(1)) != base.fingerprint(Numbers(2))
    with pytest.raises(sources.DatasetError, match=r"list has no fingerprint\(\)"):
        base.fingerprint([1])


def test_importing_sources_loads_no_heavy_package():
    heavy = ("grain", "jax", "pyarrow", "array_record", "tensorflow_datasets")
    code = f"import sys, data_pipelines.sources; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_missing_optional_package_names_the_extra():
    with pytest.raises(ImportError, match=r"reading X needs not_there: pip install 'nova-jax\[data\]'"):
        base.require("not_there.part", "reading X")
