"""The `nova` command: quick help, clear errors, pictures from a run folder."""

import json
import subprocess
import sys

import jax
import pytest

from nova_jax import cli, weights
from nova_jax.models.text import ByteTextEncoder


def test_help_loads_neither_jax_nor_flax():
    code = "import sys; from nova_jax import cli; print(sorted({'jax', 'flax', 'orbax', 'grain'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_doctor_prints_versions_and_devices(capsys):
    cli.main(["doctor"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["device_count"] == jax.device_count()
    assert facts["versions"]["jax"] == jax.__version__


def test_weights_counts_parameters_and_converts(tmp_path, capsys):
    encoder = ByteTextEncoder(width=8, depth=1, num_heads=2, downsample=4)
    variables = encoder.init(jax.random.key(0), jax.numpy.zeros((1, 4), int), jax.numpy.ones((1, 4), bool))
    weights.save(encoder, variables["params"], tmp_path / "encoder")
    cli.main(["weights", str(tmp_path / "encoder"), "--out", str(tmp_path / "half"), "--dtype", "float16"])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert f"ByteTextEncoder: {count:,} parameters" in capsys.readouterr().out
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 3 * count


@pytest.mark.parametrize(
    "arguments", [["generate", "a circle", "--run", "/nowhere"], ["weights", "/nowhere"]], ids=["generate", "weights"]
)
def test_a_missing_folder_is_one_sentence_and_a_failure(arguments):
    with pytest.raises(SystemExit, match="nova: /nowhere") as caught:
        cli.main(arguments)
    assert caught.value.code not in (0, None)
