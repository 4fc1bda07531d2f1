"""Fitted grids pay on problems whose flow is known, and say what they are."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import gaussian_mixtures
from nova_jax import sampling
from nova_jax.diffusion import RectifiedFlow
from nova_jax.sampling import fitted, time_grids

FLOW = RectifiedFlow()
QUICK = fitted.FitSettings(steps=150, batch_size=128, evaluate_every=25)
SOLVER = sampling.DPMSolverPP()


def problem(distribution):
    return sampling.Problem(distribution.denoiser(FLOW), None, FLOW)


def noise(dimensions, count=256):
    return jnp.asarray(np.random.default_rng(0).standard_normal((count, dimensions)).astype(np.float32))


def held_out_ratio(distribution, dimensions, num_steps, settings=QUICK):
    """Error of the learned grid over that of the uniform one, on noise that no part of the fit has seen."""
    given = problem(distribution)
    found = fitted.fit_grid(given, noise(dimensions), sampler=SOLVER, num_steps=num_steps, settings=settings)
    fresh = jnp.asarray(np.random.default_rng(1).standard_normal((512, dimensions)).astype(np.float32))
    truth = fitted.reference_ends(given, fresh, num_steps=400, batch_size=512)

    @jax.jit
    def end(times):
        return sampling.sample(given.denoiser, fresh, sampler=SOLVER, times=times, schedule=FLOW).x

    errors = [
        float(jnp.sqrt(jnp.mean((end(jnp.asarray(times, jnp.float32)) - truth) ** 2)))
        for times in (found.times, np.linspace(1, 0, num_steps + 1))
    ]
    return errors[0] / errors[1]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "dimensions", "num_steps", "limit"),
    [("TWO_SCALES", 1, 10, 0.5), ("IMAGE_LIKE", 64, 10, 0.65), ("IMAGE_LIKE", 64, 5, 0.65), ("PRODUCT", 2, 8, 0.75)],
)
def test_a_learned_grid_beats_the_uniform_one(name, dimensions, num_steps, limit):
    assert held_out_ratio(getattr(gaussian_mixtures, name), dimensions, num_steps) <= limit


@pytest.mark.long
@pytest.mark.parametrize("num_steps", [4, 8])
def test_a_learned_grid_is_never_worse_where_little_is_to_gain(num_steps):
    assert held_out_ratio(gaussian_mixtures.FIVE_MODES, 2, num_steps) <= 1.05


def test_for_gaussian_data_and_euler_the_grid_of_equal_angles_is_found():
    std, steps = 0.7, 6
    data = gaussian_mixtures.Mixture(np.ones(1), np.zeros((1, 1)), np.full((1, 1, 1), std**2))
    settings = fitted.FitSettings(steps=500, learning_rate=0.03, batch_size=128, evaluate_every=50)
    found = fitted.fit_grid(
        problem(data), noise(1), sampler=sampling.Euler(), num_steps=steps, reference=std * noise(1), settings=settings
    )
    inner = np.asarray(found.times[1:-1])
    best = std * np.tan(np.linspace(np.pi / 2, 0, steps + 1)[1:-1])
    np.testing.assert_allclose(inner / (1 - inner), best, rtol=0.02)
    end = sampling.sample(
        problem(data).denoiser, jnp.ones((1, 1)), sampler=sampling.Euler(), times=list(found.times), schedule=FLOW
    ).x
    np.testing.assert_allclose(end / std, np.cos(np.pi / (2 * steps)) ** steps, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("method", "distribution", "dimensions", "sampler"),
    [
        (fitted.dynamic_programming_grid, gaussian_mixtures.IMAGE_LIKE, 64, SOLVER),
        (fitted.curvature_grid, gaussian_mixtures.TWO_SCALES, 1, sampling.Euler()),
    ],
)
def test_the_cheaper_forms_beat_the_uniform_grid(method, distribution, dimensions, sampler):
    given, start = problem(distribution), noise(dimensions)
    truth = fitted.reference_ends(given, start)
    found = method(given, start, sampler=sampler, num_steps=10, reference=truth, settings=QUICK)
    uniform = sampling.sample(given.denoiser, start, sampler=sampler, times=time_grids.uniform(10), schedule=FLOW).x
    assert found.rmse_held_out[1] < 0.7 * float(jnp.sqrt(jnp.mean((uniform - truth)[-64:] ** 2)))
    assert found.method == method.__name__.removesuffix("_grid").replace("_", " ")


def test_a_fitted_grid_is_saved_with_where_it_comes_from_and_used_by_its_file(tmp_path):
    found = fitted.curvature_grid(
        problem(gaussian_mixtures.GAUSSIAN), noise(2), sampler=SOLVER, num_steps=3, settings=QUICK
    )
    found = dataclasses.replace(found, model="exact", task="unconditional", guidance="none", seeds="0..255")
    path = found.save(tmp_path / "grids" / "dpmpp_2m_3.json")
    assert fitted.load(path) == found
    named = time_grids.named(str(tmp_path / "grids" / "dpmpp_2m_{num_steps}.json"), 3, FLOW)
    np.testing.assert_allclose(named, found.times, rtol=1e-6)
    assert found.nfe == found.num_steps == 3
    assert (found.times[0], found.times[-1]) == (1.0, 0.0)
    with pytest.raises(ValueError, match="has 3 steps and was fitted for them; got 4"):
        time_grids.named(str(path), 4, FLOW)
    path.write_text(json.dumps({"times": [1.0, 0.0], "sampler": "x"}))
    with pytest.raises(ValueError, match="holds no fitted grid"):
        fitted.load(path)


@pytest.mark.long
def test_rows_of_the_condition_stay_with_their_noise():
    """Data of N(cond, 0.3^2): a fit that mixed up rows would find no grid with a small error."""

    def denoise(x, t, cond):
        alpha, sigma = 1 - t[:, None], t[:, None]
        residual = (x - alpha * cond) / (alpha**2 * 0.09 + sigma**2)
        return sampling.sampler.Denoised(cond + alpha * 0.09 * residual, sigma * residual)

    means = jnp.asarray(np.random.default_rng(2).standard_normal((90, 1)).astype(np.float32))
    given = sampling.Problem(denoise, means, FLOW)
    settings = dataclasses.replace(QUICK, steps=50, batch_size=32)
    found = fitted.fit_grid(
        given, noise(1, 90), sampler=SOLVER, num_steps=6, reference=means + 0.3 * noise(1, 90), settings=settings
    )
    assert found.rmse_held_out[1] < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": noise(2, 1)}, "at least two samples"),
        ({"starts": {"mine": [1.0, 0.5, 0.0]}}, "has 2 steps, not 4"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    arguments = {"noise": noise(2, 8), "sampler": SOLVER, "num_steps": 4, "settings": QUICK} | change
    with pytest.raises(ValueError, match=message):
        fitted.fit_grid(problem(gaussian_mixtures.GAUSSIAN), **arguments)


@pytest.mark.parametrize("change", [{"steps": 0}, {"learning_rate": 0.0}, {"held_out": 1.0}])
def test_wrong_settings_are_refused(change):
    with pytest.raises(ValueError, match="must"):
        fitted.FitSettings(**change)
