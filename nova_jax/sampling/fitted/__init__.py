"""Fitted time grids: dense only where one denoiser, one solver and one number of steps need it.

The grid of a sampler is data, so it can be learned. Three ways, the most expensive first:

    fit_grid                   times that minimise the error at the end, by gradients through all steps of the solver;
                               Tong et al. 2024, LD3 (arXiv 2405.15506); Frankel et al. 2025, S4S (2502.17423)
    dynamic_programming_grid   the chain of single steps with the least sum of measured local errors; Chen et al. 2024,
                               GITS (2405.11326); Pei et al. 2025, OptimalSteps (2503.21774)
    curvature_grid             equal shares of the local error's density, |d^(p+1) x / dt^(p+1)|^(1/(p+1)), p the order

The first sees how errors of different steps add up or cancel, and what a multistep solver remembers; the others do not.
The error is the distance to a fine path that starts from the same noise:

    loss(times) = mean |sample(noise; times) - reference(noise)|^2
    times       = 1 - cumulative sum of softmax(logits)                always falling from 1 to 0

A grid belongs to the denoiser it was fitted on, guidance included. Times are a few dozen numbers: a few hundred samples
are enough, and the part of them held out tells whether the grid is better than the fixed one it started from; if not,
that one is the result. All steps of all fits pass the same compiled program.
"""

from nova_jax.sampling.fitted.grid import FittedGrid, load
from nova_jax.sampling.fitted.learned import fit_grid
from nova_jax.sampling.fitted.local import curvature_grid, dynamic_programming_grid
from nova_jax.sampling.fitted.program import FitSettings, Program, fixed_grids, reference_ends

__all__ = [
    "FitSettings",
    "FittedGrid",
    "Program",
    "curvature_grid",
    "dynamic_programming_grid",
    "fit_grid",
    "fixed_grids",
    "load",
    "reference_ends",
]
