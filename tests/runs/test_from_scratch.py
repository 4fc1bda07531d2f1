"""What a run needs first, and what comes after it, under several processes."""

import json
import subprocess
import sys

import pytest

from tests.runs import test_recovery

PROGRAM = """
import sys
from data_pipelines import autoencoders, datasets
from data_pipelines.scenes import source
from experiments import image_vae
from nova_jax import experiment
from nova_jax.parallel.mesh import MeshConfig
from tests import tiny_run
import dataclasses

pixels = datasets.Pixels(source=source.Scenes(length=64))
config = image_vae.make_config(pixels, name="tiny_vae", steps=2, batch_size=4, vae=tiny_run.TINY_VAE)
config = dataclasses.replace(config, run_dir=sys.argv.pop(), mesh=MeshConfig(fsdp=2))
for _ in range(2):
    folder = autoencoders.train(config, source.Scenes(seed=5, length=8))
experiment.main(config, then=lambda config, result: print("scored", result.state.step, folder))
"""


@pytest.mark.long
def test_two_processes_train_an_autoencoder_that_one_exports_and_one_prints_what_comes_after(tmp_path):
    launch = [sys.executable, "-c", "from nova_jax import cli; cli.main()", "launch", "--devices", "1", "--"]
    command = [*launch, sys.executable, "-c", PROGRAM, str(tmp_path / "run")]
    done = subprocess.run(command, env=test_recovery.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    card = json.loads((tmp_path / "run" / "codec" / "card.json").read_text())
    assert (card["steps"], card["held_out"]) == (2, 8)
    assert done.stdout.count("psnr_db") == 1
    assert done.stdout.splitlines()[-1] == f"scored 2 {tmp_path / 'run' / 'codec'}"
    assert "scored" not in done.stderr
