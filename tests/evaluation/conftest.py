"""One trained run for all tests of benchmarks; they leave it as it is."""

import pytest

from nova_jax import experiment
from tests import tiny_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The folder of the smallest run."""
    return experiment.run(tiny_run.make_config(tmp_path_factory.mktemp("teacher"))).directory
