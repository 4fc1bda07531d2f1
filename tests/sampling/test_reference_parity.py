"""Trajectories equal those of diffusers' schedulers on exact problems, step by step.

diffusers keeps some states and sigmas in float32, hence 1e-5 there and rounding where it works in float64.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import gaussian_mixtures
from nova_jax import sampling
from nova_jax.diffusion import RectifiedFlow, VarianceExploding, VariancePreservingCosine
from nova_jax.sampling import time_grids

FLOW = RectifiedFlow()
SOLVERS = {
    "fm_euler_native_shift3": (sampling.Euler(), 1e-5),
    "fm_euler_pipeline_shift1": (sampling.Euler(), 1e-5),
    "fm_heun_native": (sampling.Heun(), 1e-5),
    "dpmpp_1m_midpoint_flow": (sampling.DPMSolverPP(order=1), 1e-5),
    "dpmpp_2m_midpoint_flow": (sampling.DPMSolverPP(), 1e-5),
    "dpmpp_2m_heun_flow": (sampling.DPMSolverPP(variant="heun"), 1e-5),
    "dpmpp_3m_midpoint_flow": (sampling.DPMSolverPP(order=3), 1e-5),
    "dpmpp_2m_flow_shift3_default": (sampling.DPMSolverPP(lower_order_final=True), 1e-5),
    "unipc_2_bh2_flow": (sampling.UniPC(), 1e-5),
    "unipc_3_bh2_flow": (sampling.UniPC(order=3), 1e-5),
    "dpmpp_2m_midpoint_lam": (sampling.DPMSolverPP(), 1e-5),
    "dpmpp_3m_midpoint_lam": (sampling.DPMSolverPP(order=3), 1e-5),
    "unipc_2_bh2_lam": (sampling.UniPC(), 1e-12),
    "unipc_3_bh2_lam": (sampling.UniPC(order=3), 1e-12),
    "dpmpp_2s_single_lam": (sampling.DPMSolverPP2S(), 1e-12),
    "deis_2_lam": (sampling.DEIS(order=2), 1e-12),
    "deis_3_lam": (sampling.DEIS(order=3), 1e-12),
}
# unipc_*_bh1_flow: NaN in diffusers, whose weight is 0 x infinity in the step to sigma = 0; ours is finite there.
# sa_*: SA-Solver is not among our solvers.


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "reference" / "samplers"
    return json.loads((folder / "diffusers_index.json").read_text()), np.load(folder / "diffusers.npz")


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("problem", ["gauss2d", "gmm1d"])
def test_trajectories_on_rectified_flow(reference, problem, name, float64):
    index, arrays = reference
    sampler, tolerance = SOLVERS[name]
    mixture = _mixture(index["problems"][problem])
    run = jax.jit(lambda x, times: _walk(mixture.denoiser(FLOW), x, sampler, times, FLOW))
    for steps in (4, 10, 25):
        times, states = (arrays[f"{problem}/{name}/{steps}/{part}"] for part in ("s", "x"))
        if name == "dpmpp_2s_single_lam":  # two steps of that grid are one step of this solver
            times, states = times[::2], states[::2]
        ours = run(jnp.asarray(states[0]), time_grids.pad(jnp.asarray(times), 25))[: len(times)]
        np.testing.assert_allclose(ours, states, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("name", "sampler"), [("edm_euler", sampling.Euler()), ("edm_dpmpp_2m", sampling.DPMSolverPP())]
)
def test_trajectories_on_the_variance_exploding_schedule(reference, name, sampler, float64):
    index, arrays = reference
    schedule = VarianceExploding(sigma_max=float(arrays[f"gauss2d/{name}/10/s"][0]))
    mixture = _mixture(index["problems"]["gauss2d"])
    sigmas, states = (arrays[f"gauss2d/{name}/10/{part}"] for part in ("s", "x"))
    times = sigmas / schedule.sigma_max
    ours = _walk(mixture.denoiser(schedule), jnp.asarray(states[0]), sampler, times, schedule)
    np.testing.assert_allclose(ours, states, atol=2e-5, rtol=2e-6)


def test_ddim_on_a_variance_preserving_schedule(reference, float64):
    index, arrays = reference
    schedule = VariancePreservingCosine()
    mixture = _mixture(index["problems"]["gauss2d"])
    alpha_bar, states = (arrays[f"gauss2d/ddim_vp_linear/10/{part}"] for part in ("s", "x"))
    times = np.arccos(np.sqrt(alpha_bar)) / schedule.last_angle  # the same noise levels
    ours = _walk(mixture.denoiser(schedule), jnp.asarray(states[0]), sampling.DDIM(), times, schedule)
    np.testing.assert_allclose(ours, states, atol=1e-5, rtol=0)


def _mixture(problem):
    return gaussian_mixtures.Mixture(*(np.asarray(problem[part]) for part in ("w", "mu", "cov")))


def _walk(denoiser, x, sampler, times, schedule):
    return sampling.sample_trajectory(denoiser, x, sampler=sampler, times=times, schedule=schedule)
