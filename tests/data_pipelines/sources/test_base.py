import dataclasses
import os
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


def test_a_dataclass_whose_repr_does_not_tell_all_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Noise:
        levels: np.ndarray

    @dataclasses.dataclass(frozen=True)
    class Secret:
        seed: int = dataclasses.field(repr=False)

    for source, field in ((Noise(np.zeros(5000)), "levels"), (Secret(1), "seed")):
        with pytest.raises(sources.DatasetError, match=rf"field {field} is an array or hidden"):
            base.fingerprint(source)


def test_several_files_are_named_by_commas_braces_and_globs(tmp_path):
    names = [f"{part}-{i:03d}.tar" for part in ("a", "b") for i in range(12)]
    for name in (*names, "x,y.tar", "z{1,2}.tar"):
        (tmp_path / name).touch()

    def found(paths):
        return [os.path.basename(file) for file in base.find_files(paths, ".tar")]

    assert found(f"{tmp_path}/a-000.tar, {tmp_path}/b-00?.tar") == ["a-000.tar", *names[12:22]]
    for paths in (f"{tmp_path}/{{a,b}}-{{000..011}}.tar", f"{tmp_path}/a-*.tar,{tmp_path}/b-{{000..011}}.tar"):
        assert found(paths) == names
        assert found((paths, f"{tmp_path}/a-003.tar")) == [*names, "a-003.tar"]
    assert found(f"{tmp_path}/a-{{002..000}}.tar") == ["a-002.tar", "a-001.tar", "a-000.tar"]
    assert found(f"{tmp_path}/a-{{008..11}}.tar") == names[8:12]
    assert found(f"{tmp_path}/x,y.tar") == ["x,y.tar"]
    assert found(f"{tmp_path}/z{{1,2}}.tar") == ["z{1,2}.tar"]
    with pytest.raises(sources.DatasetError, match=r"there is no file .*a-012\.tar: give a file, .* with commas"):
        found(f"{tmp_path}/a-{{000..900}}.tar")
    with pytest.raises(sources.DatasetError, match=r"there is no file .*a-0\.tar"):
        found(f"{tmp_path}/a-{{0..999999999}}.tar")
    with pytest.raises(sources.DatasetError, match=r"there is no file .*c\.tar"):
        found(f"{tmp_path}/a-000.tar,{tmp_path}/c.tar")
    for nothing in ("", " , ", ()):
        with pytest.raises(sources.DatasetError, match=r"names no file: give a file, a folder of \.tar files"):
            found(nothing)


def test_what_is_no_file_is_refused_among_the_shards(tmp_path):
    (tmp_path / "a.tar").touch()
    (tmp_path / "b.tar").mkdir()
    with pytest.raises(sources.DatasetError, match=r"b\.tar is no file but a folder"):
        base.find_files(str(tmp_path), ".tar")
    (tmp_path / "b.tar").rmdir()
    os.mkfifo(tmp_path / "b.tar")
    for paths in (str(tmp_path), f"{tmp_path}/*.tar", f"{tmp_path}/b.tar"):
        with pytest.raises(sources.DatasetError, match=r"b\.tar is no file but a pipe, socket or device"):
            base.find_files(paths, ".tar")


def test_a_name_is_told_in_text_that_can_be_stored_and_shown():
    shown = {"a b.png": "a b.png", "caf\udce9.png": "caf?.png", "a\nb": r"'a\nb'", 3: "3"}
    assert {name: base.show(name) for name in shown} == shown
    assert base.show("x" * 900).startswith("'xxx")
    assert len(base.show("x" * 900)) <= base.MAX_NAME


def test_captions_lose_a_byte_order_mark_and_must_be_whole_characters():
    assert base.decode_caption(b"\xef\xbb\xbfa red heart\n") == "a red heart"
    assert base.check_caption("\ufeffa red heart") == "a red heart"
    assert base.check_caption("\U0001f600 smiles ") == "\U0001f600 smiles "
    for text in ("half \ud83d", "\udce9t\udce9"):
        with pytest.raises(ValueError, match=r"not Unicode: '\\ud.* is half a character"):
            base.check_caption(text)
    with pytest.raises(ValueError, match="more than 65536"):
        base.check_caption("x" * 70_000)


def test_hidden_files_and_folders_are_those_that_nobody_put_there():
    for name in ("._0.png", ".thumbnails/0.png", "a/.ipynb_checkpoints/0.png", "__MACOSX/a/0.png", "@eaDir/0.png"):
        assert base.is_hidden(name)
    for name in ("0.png", "./0.png", "../0.png", "a/b.c/0.png", "_/0.png"):
        assert not base.is_hidden(name)


def test_importing_sources_loads_no_heavy_package():
    heavy = ("grain", "jax", "pyarrow", "array_record", "tensorflow_datasets")
    code = f"import sys, data_pipelines.sources; print([name for name in {heavy} if name in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_missing_optional_package_names_the_extra():
    with pytest.raises(ImportError, match=r"reading X needs not_there: pip install 'nova-jax\[data\]'"):
        base.require("not_there.part", "reading X")
