"""Exact arithmetic for identities."""

import jax
import jax.experimental
import pytest


@pytest.fixture
def float64():
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        yield
