"""Eight devices do the same in one process, in two and in four: train, preview, start from a run, distil.

They take more minutes than a test suite has: run by hand (`-m slow`).
"""

import json

import numpy as np
import pytest
from PIL import Image

from tests.runs import test_processes, test_recovery

SHAPES = ((2, 4), (4, 2))  # processes, devices of each

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """What the runs leave behind, by shape."""
    found = {}
    for shape in ((1, 8), *SHAPES):
        folder = found[shape] = tmp_path_factory.mktemp("x".join(map(str, shape)))
        configs = test_processes.make_configs(folder)
        code, error = test_recovery.launch(*shape, *(configs[run] for run in test_processes.RUNS))
        assert code == 0, error[-3000:]
        ran_on = json.loads((folder / "run" / "config.json").read_text())["environment"]
        assert (ran_on["process_count"], ran_on["device_count"]) == (shape[0], 8)
    return found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("run", test_processes.RUNS)
def test_the_losses_are_those_of_one_process(folders, record_property, run, shape):
    """But for the rounding of float32; the student starts as its teacher, so its losses are near zero."""
    found, expected = (test_recovery.losses(folders[key] / run) for key in (shape, (1, 8)))
    assert len(found) == 4
    record_property("loss", float(np.max(np.abs(np.subtract(found, expected)) / np.maximum(np.abs(expected), 1e-3))))
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_previews_are_those_of_one_process(folders, record_property, shape):
    found, expected = (
        np.asarray(Image.open(folders[key] / "run" / "samples" / "00000004.png")) for key in (shape, (1, 8))
    )
    record_property("levels", int(np.abs(found.astype(int) - expected).max()))
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)
