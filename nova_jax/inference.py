"""The earlier name of `nova_jax.generation`, kept for scripts and notebooks that use it."""

import warnings

from nova_jax.generation import *  # noqa: F403

warnings.warn("nova_jax.inference is now nova_jax.generation", DeprecationWarning, stacklevel=2)
