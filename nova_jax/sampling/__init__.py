"""From noise to data: time grids, solvers, and the loop `sample` that walks one along the other."""

from nova_jax.sampling import noise, time_grids
from nova_jax.sampling.euler import Euler
from nova_jax.sampling.heun import Heun
from nova_jax.sampling.noise import initial_noise
from nova_jax.sampling.sampler import Sampler, sample, sample_trajectory

__all__ = ["Euler", "Heun", "Sampler", "initial_noise", "noise", "sample", "sample_trajectory", "time_grids"]
