import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import gaussian_mixtures
from nova_jax import sampling
from nova_jax.diffusion import RectifiedFlow
from nova_jax.diffusion.denoiser import declare
from nova_jax.sampling import adaptive

FLOW = RectifiedFlow()
DENOISER = gaussian_mixtures.PRODUCT.denoiser(FLOW)


@pytest.fixture(scope="module")
def noise():
    return np.random.default_rng(0).standard_normal((256, 2))


def integrate(x, denoiser=DENOISER, **fields):
    sampler = adaptive.Adaptive(**fields)
    return jax.jit(lambda x: adaptive.integrate(denoiser, x, sampler=sampler, schedule=FLOW))(jnp.asarray(x))


def rms(error):
    return float(np.sqrt(np.mean(np.square(error))))


@pytest.mark.long
def test_the_error_falls_with_the_tolerance_at_little_cost(noise, float64):
    truth = gaussian_mixtures.PRODUCT.flow(noise)
    errors, costs = [], []
    for tolerance in (1e-2, 1e-3, 1e-5):
        sampled, state = integrate(noise, rtol=tolerance, atol=tolerance, norm="batch")
        assert not np.any(state.forced)
        errors.append(rms(sampled.x - truth))
        costs.append(int(sampled.nfe))
    assert errors[0] > errors[1] > errors[2]
    assert costs[0] < costs[1] < costs[2]
    assert errors[1] <= 0.01
    assert costs[1] <= 80


def test_every_evaluation_is_counted_those_of_rejected_steps_too(noise):
    calls = []

    def counted(x, t, cond):
        jax.debug.callback(lambda: calls.append(1))
        return DENOISER(x, t, cond)

    sampled, state = integrate(noise[:8].astype(np.float32), counted, norm="batch", first_step=1.0, max_step=1.0)
    jax.effects_barrier()
    assert int(sampled.nfe) == len(calls)
    assert int(state.rejected[0]) > 0
    attempts = int(state.accepted[0] + state.rejected[0])
    # k1, then three an attempt, but two where the attempt is for clean data and has no slope at its end.
    assert 1 + 2 * attempts < len(calls) < 1 + 3 * attempts


def test_a_guided_evaluation_counts_for_two(noise):
    x = noise[:4].astype(np.float32)
    once, _ = integrate(x)
    twice, _ = integrate(x, declare(DENOISER, lambda t: 2))
    assert int(twice.nfe) == 2 * int(once.nfe)


@pytest.mark.parametrize("max_nfe", [4, 10, 25])
def test_the_end_is_reached_within_the_evaluations_allowed(noise, max_nfe):
    sampled, state = integrate(noise[:16].astype(np.float32), rtol=1e-6, atol=1e-6, max_nfe=max_nfe)
    assert int(sampled.nfe) <= max_nfe
    assert np.all(np.isfinite(sampled.x))
    assert np.all(state.forced >= 1)  # and says that it was not as exact as asked


def test_with_its_own_steps_a_sample_does_not_depend_on_its_batch(noise):
    x = noise[:5].astype(np.float32)
    together, _ = integrate(x)
    alone, _ = integrate(x[2:3])
    np.testing.assert_allclose(together.x[2:3], alone.x, atol=1e-6)


def test_as_a_sampler_it_stops_at_every_time_of_the_grid(noise, float64):
    x = noise[:16]
    times = np.array([1.0, 0.6, 0.6, 0.3, 0.0])
    sampler = adaptive.Adaptive(rtol=1e-6, atol=1e-6)
    path = sampling.sample_trajectory(DENOISER, jnp.asarray(x), sampler=sampler, times=times, schedule=FLOW)
    for t, state in zip(times, path, strict=True):
        np.testing.assert_allclose(state, gaussian_mixtures.PRODUCT.flow(x, 1.0, t), atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rtol": -1.0}, "at least 0"),
        ({"rtol": 0.0, "atol": 0.0}, "not both 0"),
        ({"max_nfe": 3}, "max_nfe must be at least 4"),
        ({"norm": "max"}, "use sample or batch"),
        ({"first_step": 0.0}, "must lie in"),
        ({"pid": (0.0, 0.0, 0.0)}, "sum above 0"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        adaptive.Adaptive(**fields)
