"""What a diffusion model is, apart from its network: schedules, predictions, objectives, denoisers, guidance."""

from nova_jax.diffusion import conditioning, guidance, prediction, schedules, time_sampling, weighting
from nova_jax.diffusion.conditioning import DropRates
from nova_jax.diffusion.denoiser import make_denoiser
from nova_jax.diffusion.given_frames import GivenFrames, TimeNoise, hold
from nova_jax.diffusion.guidance import classifier_free
from nova_jax.diffusion.objectives import DenoisingObjective, FlowMatching
from nova_jax.diffusion.reconstruction import Reconstruction
from nova_jax.diffusion.schedules import (
    RectifiedFlow,
    Schedule,
    VarianceExploding,
    VariancePreservingCosine,
    resolution_shift,
)
from nova_jax.diffusion.time_sampling import LogitNormal, Shifted, TimeSampling, Uniform
from nova_jax.diffusion.weighting import Constant, MinSNR

__all__ = [
    "Constant",
    "DenoisingObjective",
    "DropRates",
    "FlowMatching",
    "GivenFrames",
    "LogitNormal",
    "MinSNR",
    "Reconstruction",
    "RectifiedFlow",
    "Schedule",
    "Shifted",
    "TimeNoise",
    "TimeSampling",
    "Uniform",
    "VarianceExploding",
    "VariancePreservingCosine",
    "classifier_free",
    "conditioning",
    "guidance",
    "hold",
    "make_denoiser",
    "prediction",
    "resolution_shift",
    "schedules",
    "time_sampling",
    "weighting",
]
