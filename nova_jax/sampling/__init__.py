"""Solvers, time grids and the loop that joins them.

    sample(denoiser, noise, sampler=DPMSolverPP(order=2), times=time_grids.uniform(10), schedule=RectifiedFlow())

    in t               Euler, Heun, Midpoint, Ralston, RK4, AdamsBashforth, Adaptive
    in log-SNR         DPMSolverPP, DPMSolverPP2S, UniPC, DEIS
    stochastic         DDIM (with eta > 0), EulerAncestral, EulerMaruyama, SDEDPMSolverPP, Churn, Restart
    few-step students  FlowMapSteps, Renoise

A new solver is one file with one subclass of `Sampler`, and a line in the table below, which gives it the name that
settings, reports and the command line use.
"""

from nova_jax.sampling import noise, time_grids
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
    "MAX_STEPS",
    "SAMPLERS",
    "Problem",
    "Sampler",
    "Step",
    "check_finite",
    "initial_noise",
    "named",
    "noise",
    "sample",
    "sample_trajectory",
    "time_grids",
]  # and the solvers, which are the classes in `SAMPLERS`

MAX_STEPS = 10_000  # float32 still tells their times apart

SAMPLERS: dict[str, Sampler] = {
    "euler": Euler(),
    "heun": Heun(),
    "midpoint": Midpoint(),
    "ralston": Ralston(),
    "rk4": RK4(),
    "ab2": AdamsBashforth(order=2),
    "ab3": AdamsBashforth(order=3),
    "dpmpp_2s": DPMSolverPP2S(),
    "dpmpp_2m": DPMSolverPP(order=2),
    "dpmpp_3m": DPMSolverPP(order=3),
    "dpmpp_3m_corrected": DPMSolverPP(order=3, variant="corrected"),
    "unipc_2": UniPC(order=2),
    "unipc_3": UniPC(order=3),
    "deis_2": DEIS(order=2),
    "deis_3": DEIS(order=3),
    "adaptive": Adaptive(),
    "ddim": DDIM(),
    "ddpm": DDIM(eta=1.0),
    "euler_ancestral": EulerAncestral(),
    "euler_maruyama": EulerMaruyama(),
    "dpmpp_2m_sde": SDEDPMSolverPP(order=2),
    "churn": Churn(),
    "restart": Restart(),
    "flow_map": FlowMapSteps(),
    "renoise": Renoise(),
}


def named(name: str, num_steps: int | None = None) -> Sampler:
    """The sampler of this name.

    Args:
        name: a key of `SAMPLERS`.
        num_steps: if given, the number of steps it is to take.

    Raises:
        ValueError: an unknown name (with a list of the known), fewer steps than its order takes, or over `MAX_STEPS`.
    """
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}: choose one of {', '.join(SAMPLERS)}")
    sampler = SAMPLERS[name]
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}; it must be at least 1")
    if num_steps is not None and num_steps > MAX_STEPS:
        raise ValueError(f"num_steps is {num_steps}; it must be at most {MAX_STEPS:,}")
    if num_steps is not None and num_steps < sampler.min_steps:
        raise ValueError(
            f"{name} needs at least {sampler.min_steps} steps to reach its order, got {num_steps}: take more steps, or "
            "a sampler of a lower order"
        )
    return sampler
