"""The walk that one evaluation is timed with: it evaluates, and does nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines import gaussian_mixtures
from nova_jax import sampling
from nova_jax.diffusion import RectifiedFlow, denoiser
from nova_jax.evaluation import timing
from nova_jax.sampling import time_grids


def test_a_walk_that_stays_spends_what_the_denoiser_declares_and_ends_where_it_began():
    flow = RectifiedFlow()
    declared = denoiser.declare(gaussian_mixtures.FIVE_MODES.denoiser(flow), lambda t: 2)
    start = jax.random.normal(jax.random.key(0), (5, 2))
    stayed = sampling.sample(declared, start, sampler=timing.Stay(), times=time_grids.uniform(16), schedule=flow)
    assert stayed.nfe == 32
    np.testing.assert_allclose(stayed.x, start, rtol=1e-5, atol=1e-5)


def test_seconds_are_those_until_the_arrays_are_there():
    spent, found = timing.seconds(lambda: jnp.arange(3) + 1)
    assert spent > 0
    np.testing.assert_array_equal(found, [1, 2, 3])
    assert timing.spread([3.0, 1.0, 2.0]) == {"median": 2.0, "low": 1.0, "high": 3.0}
