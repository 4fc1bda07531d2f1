"""One trained run for all tests of benchmarks; they leave it as it is."""

import importlib

import pytest

from tests import tiny_run


@pytest.fixture(scope="session")
def trained(once):
    """The folder of the smallest run."""
    return once("tiny_run", tiny_run.train)


@pytest.fixture
def only_the_wheel(monkeypatch):
    """As if nova_jax were installed without the repository around it."""
    real = importlib.import_module

    def import_module(name, package=None):
        if name.split(".")[0] == "data_pipelines":
            raise ModuleNotFoundError("No module named 'data_pipelines'", name="data_pipelines")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", import_module)
