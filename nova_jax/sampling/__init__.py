"""Solvers, time grids and the loop that joins them.

    sample(denoiser, noise, sampler=DPMSolverPP(order=2), times=time_grids.uniform(10), schedule=RectifiedFlow())

    in t               Euler, Heun, Midpoint, Ralston, RK4, AdamsBashforth, Adaptive
    in log-SNR         DPMSolverPP, DPMSolverPP2S, UniPC, DEIS
    stochastic         DDIM (with eta > 0), EulerAncestral, EulerMaruyama, SDEDPMSolverPP, Churn, Restart
    few-step students  FlowMapSteps, Renoise

A new solver is one file with one subclass of `Sampler`; a line in `named` gives it a name for the command line.
"""

from nova_jax.sampling import named, noise, time_grids
from nova_jax.sampling.adams_bashforth import AdamsBashforth
from nova_jax.sampling.adaptive import Adaptive
from nova_jax.sampling.churn import Churn
from nova_jax.sampling.ddim import DDIM
from nova_jax.sampling.deis import DEIS
from nova_jax.sampling.dpm_solver_pp import DPMSolverPP
from nova_jax.sampling.dpm_solver_pp_2s import DPMSolverPP2S
from nova_jax.sampling.euler import Euler
from nova_jax.sampling.euler_ancestral import EulerAncestral
from nova_jax.sampling.euler_maruyama import EulerMaruyama
from nova_jax.sampling.flow_map import FlowMapSteps
from nova_jax.sampling.heun import Heun
from nova_jax.sampling.midpoint import Midpoint
from nova_jax.sampling.noise import initial_noise
from nova_jax.sampling.ralston import Ralston
from nova_jax.sampling.renoise import Renoise
from nova_jax.sampling.restart import Restart
from nova_jax.sampling.rk4 import RK4
from nova_jax.sampling.sampler import Problem, Sampler, Step, check_finite, sample, sample_trajectory
from nova_jax.sampling.sde_dpm_solver_pp import SDEDPMSolverPP
from nova_jax.sampling.unipc import UniPC

__all__ = [
    "DDIM",
    "DEIS",
    "RK4",
    "AdamsBashforth",
    "Adaptive",
    "Churn",
    "DPMSolverPP",
    "DPMSolverPP2S",
    "Euler",
    "EulerAncestral",
    "EulerMaruyama",
    "FlowMapSteps",
    "Heun",
    "Midpoint",
    "Problem",
    "Ralston",
    "Renoise",
    "Restart",
    "SDEDPMSolverPP",
    "Sampler",
    "Step",
    "UniPC",
    "check_finite",
    "initial_noise",
    "named",
    "noise",
    "sample",
    "sample_trajectory",
    "time_grids",
]
