"""Notebooks run from top to bottom, in miniature, and are committed without outputs."""

import json
import pathlib
import re
import tempfile

import pytest

NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def code_cells(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


@pytest.fixture(scope="module")
def smoke_folder(tmp_path_factory):
    """Where notebooks put their miniature runs, and find those of each other."""
    return str(tmp_path_factory.mktemp("notebooks"))


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_top_to_bottom(path, smoke_folder, monkeypatch, tmp_path):
    plots = pytest.importorskip("matplotlib.pyplot", reason='pip install "nova-jax[notebook]" to run notebooks')
    monkeypatch.setenv("NOVA_SMOKE", "1")
    monkeypatch.setattr(tempfile, "tempdir", smoke_folder)
    monkeypatch.chdir(tmp_path)
    plots.switch_backend("agg")
    names = {"__name__": "__main__"}
    for number, cell in enumerate(code_cells(path)):
        exec(compile("".join(cell["source"]), f"{path.name}, code cell {number}", "exec"), names)
    plots.close("all")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_without_outputs_and_uses_public_names_only(path):
    for cell in code_cells(path):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        assert not re.search(r"\._[a-z]|import _|^[%!]", "".join(cell["source"]), re.MULTILINE)
