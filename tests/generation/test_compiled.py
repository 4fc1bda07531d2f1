"""Programs compiled ahead sample the same images, in a new process without compiling; stale ones are refused."""

import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from nova_jax import generation
from nova_jax.generation import compiled
from tests import tiny_run

SETTINGS = generation.SamplingSettings(sampler="euler", num_steps=2, guidance_scale=2.0)
# Runs a `nova` command and prints how often it compiled, and read a program from the compilation cache.
COUNTED = """
import json, sys
import jax
times = []
jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: times.append(name))
jax.monitoring.register_event_listener(lambda name, **_: times.append(name))
from nova_jax import cli
cli.main(sys.argv[1:])
names = "/jax/core/compile/backend_compile_duration", "/jax/compilation_cache/cache_hits"
print(json.dumps([times.count(name) for name in names]))
"""


@pytest.fixture
def run(once, tmp_path):
    """A copy of the trained tiny run."""
    return shutil.copytree(once("tiny_run", tiny_run.train), tmp_path / "run")


def draw(run, programs):
    trained = generation.load_run(run)._replace(programs=programs)
    return generation.generate(trained, ["a red circle"], [5], SETTINGS)


@pytest.fixture
def written(run):
    """The run with its programs, their names, and the image that they drew."""
    writer = compiled.Writer(run)
    pixels = draw(run, writer)
    return run, writer.written, pixels


def test_programs_are_found_again_and_sample_the_same_image(written, caplog):
    run, names, pixels = written
    assert [name.rpartition("-")[0] for name in names] == ["make_times", "encode", "draw", "_is_finite", "decode"]
    np.testing.assert_array_equal(draw(run, compiled.Reader(run)), pixels)
    np.testing.assert_array_equal(draw(run, None), pixels)
    assert not caplog.records
    listed = (run / "programs" / compiled.MANIFEST).read_text().splitlines()
    assert sorted(line.split("  ")[1] for line in listed) == sorted(
        f"{name}.{kind}" for name in names for kind in ("json", "program")
    )


def test_another_sampler_needs_another_program_and_other_settings_do_not(written, caplog):
    run, _, _ = written
    trained = generation.load_run(run)._replace(programs=compiled.Reader(run))
    for name, count in (("euler", 0), ("heun", 1)):
        settings = generation.SamplingSettings(sampler=name, num_steps=2, guidance_scale=3.0)
        generation.generate(trained, ["a blue square", "a red circle"], [1, 2], settings)
        assert [record.args[1].rpartition("-")[0] for record in caplog.records] == ["draw"] * count


def test_a_program_for_something_else_is_refused_by_its_name(written, monkeypatch):
    run, names, _ = written
    monkeypatch.setattr(compiled, "_source_digest", lambda: "another")
    with pytest.raises(compiled.StaleProgram, match=rf"{names[0]}.program .*source of nova_jax was \w+ and is another"):
        draw(run, compiled.Reader(run))


def test_other_devices_compile_what_was_exported_for_their_platform(run, monkeypatch):
    pytest.importorskip("flatbuffers")
    writer = compiled.Writer(run, platforms=("cpu",))
    pixels, names, here = draw(run, writer), writer.written, compiled.surroundings()
    monkeypatch.setattr(compiled, "surroundings", lambda: here | {"device_kind": "another"})
    np.testing.assert_array_equal(draw(run, compiled.Reader(run)), pixels)
    monkeypatch.setattr(compiled, "_platform", lambda: "tpu")
    with pytest.raises(compiled.StaleProgram, match=f"{names[0]}.program .*device_kind was cpu and is another"):
        draw(run, compiled.Reader(run))


class Canary:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def test_nothing_is_unpickled_that_the_manifest_does_not_name(written, tmp_path):
    run, names, _ = written
    canary = tmp_path / "canary"
    manifest = run / "programs" / compiled.MANIFEST
    for name in names:
        (run / "programs" / f"{name}.program").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(compiled.StaleProgram, match=rf"{names[0]}.program is not the file that manifest.sha256 names"):
        draw(run, compiled.Reader(run))
    lines = [line for line in manifest.read_text().splitlines(keepends=True) if ".program" not in line]
    manifest.write_text("".join(lines))
    with pytest.raises(compiled.StaleProgram, match=f"{names[0]}.program is not the file"):
        draw(run, compiled.Reader(run))
    assert not canary.exists()


def test_a_run_without_programs_says_how_to_get_some(run):
    with pytest.raises(FileNotFoundError, match="nova compile"):
        compiled.Reader(run)


def nova(*arguments, devices=1):
    """Compilations, and reads of the cache, of a `nova` command in a process of its own."""
    env = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    env |= {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"}
    command = [sys.executable, "-c", COUNTED, *map(str, arguments)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=pathlib.Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_a_new_process_draws_with_no_compilation(run, devices):
    """On one device, and on a mesh of two."""
    asked = ["--sampler", "euler", "--num-steps", "2"]
    nova("compile", run, *asked, devices=devices)
    draw = ["generate", "a red circle", "--run", run, *asked, "--out"]
    assert nova(*draw, run / "ahead", "--compiled", devices=devices)[0] == 0
    assert nova(*draw, run / "anew", devices=devices)[0] > 0
    ahead, anew = (np.asarray(Image.open(next((run / name).glob("*.png")))) for name in ("ahead", "anew"))
    np.testing.assert_array_equal(ahead, anew)
