import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow
from nova_jax.diffusion import denoiser as denoisers
from nova_jax.sampling import Euler, Heun, noise, sample, sample_trajectory, sampler, time_grids
from nova_jax.types import Denoised

FLOW = RectifiedFlow()


def run(denoise, x, times, solver=None, **kwargs):
    return sample(denoise, x, sampler=solver or Euler(), times=times, schedule=FLOW, **kwargs)


def test_every_step_count_runs_through_one_compiled_program_when_grids_are_padded(gaussian):
    denoise, _ = gaussian(FLOW)
    x = jnp.linspace(-2.0, 2.0, 8).reshape(2, 4)
    traces = []

    @jax.jit
    def padded(x, times):
        traces.append(times.shape)
        return run(denoise, x, times, Heun())

    for num_steps in (1, 2, 5, 8):
        grid = time_grids.uniform(num_steps)
        plain, result = run(denoise, x, grid, Heun()), padded(x, time_grids.pad(grid, 8))
        np.testing.assert_allclose(result.x, plain.x, atol=2e-6)
        assert result.nfe == plain.nfe == 2 * num_steps - 1
    assert len(traces) == 1


def test_a_repeated_time_never_calls_the_network():
    calls = []

    def denoise(x, t, cond):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0])
        return Denoised(x0=0 * x, eps=x)

    run(denoise, jnp.ones((2, 3)), time_grids.pad(time_grids.uniform(2), 6)).x.block_until_ready()
    jax.effects_barrier()
    assert sorted(calls) == [0.5, 1.0]


def test_the_trajectory_starts_at_x_and_ends_where_sample_ends(gaussian):
    denoise, _ = gaussian(FLOW)
    x = jnp.linspace(-2.0, 2.0, 6).reshape(2, 3)
    states = sample_trajectory(denoise, x, sampler=Heun(), times=time_grids.uniform(4), schedule=FLOW)
    assert states.shape == (5, 2, 3)
    np.testing.assert_array_equal(states[0], x)
    np.testing.assert_array_equal(states[-1], run(denoise, x, time_grids.uniform(4), Heun()).x)


def test_a_rising_grid_undoes_a_falling_one(gaussian, float64):
    denoise, _ = gaussian(FLOW)
    x = jnp.linspace(-2.0, 2.0, 6).reshape(2, 3)
    times = time_grids.uniform(256)
    data = run(denoise, x, times, Heun()).x
    np.testing.assert_allclose(run(denoise, data, times[::-1], Heun()).x, x, atol=2e-4)


def test_x_is_differentiable_with_respect_to_the_grid(gaussian, float64):
    denoise, flow = gaussian(FLOW)
    x = jnp.linspace(-2.0, 2.0, 6).reshape(2, 3)

    @jax.jit
    def loss(middle):
        times = jnp.concatenate([jnp.ones(1), middle, jnp.zeros(1)])
        return jnp.mean((run(denoise, x, times).x - flow(x)) ** 2)

    middle = jnp.array([0.8, 0.5, 0.2])
    step = 1e-6
    differences = [(loss(middle + step * e) - loss(middle - step * e)) / (2 * step) for e in jnp.eye(3)]
    np.testing.assert_allclose(jax.grad(loss)(middle), jnp.array(differences), rtol=1e-5)


def test_declared_costs_are_added_up_at_the_times_they_apply_to(gaussian):
    plain, _ = gaussian(FLOW)
    late_is_free = denoisers.declare(plain, lambda t: jnp.where(t > 0.5, 3, 0))
    x = jnp.ones((2, 3))
    assert run(late_is_free, x, time_grids.uniform(10)).nfe == 5 * 3
    assert run(plain, x, time_grids.uniform(10)).nfe == 10


def test_the_condition_reaches_the_denoiser_with_one_time_per_sample():
    def denoise(x, t, cond):
        assert t.shape == (3,)
        return Denoised(x0=cond, eps=x)

    cond = jnp.arange(12.0).reshape(3, 4)
    np.testing.assert_allclose(run(denoise, jnp.ones((3, 4)), [1.0, 0.0], cond=cond).x, cond, atol=1e-6)


def test_low_precision_noise_is_sampled_in_float32(gaussian):
    denoise, _ = gaussian(FLOW)
    assert run(denoise, jnp.ones((2, 3), jnp.bfloat16), time_grids.uniform(2)).x.dtype == jnp.float32


class Restless(sampler.Sampler):
    """Adds noise in every step: what a stochastic solver does with its keys."""

    def step(self, problem, x, t, t_next, state, keys):
        return sampler.Step(x + noise.normal(keys, x.shape[1:]), state, problem.evaluations(t))


def test_stochastic_steps_give_a_sample_the_same_noise_in_any_batch(gaussian):
    denoise, _ = gaussian(FLOW)
    start = jax.jit(functools.partial(run, denoise, times=time_grids.uniform(3), solver=Restless()))
    whole = start(jnp.zeros((4, 5)), key=jax.random.key(7)).x
    part = start(jnp.zeros((2, 5)), key=jax.random.key(7)).x
    np.testing.assert_array_equal(whole[:2], part)
    by_seed = start(jnp.zeros((2, 5)), key=noise.keys_from_seeds([3, 9])).x
    alone = start(jnp.zeros((1, 5)), key=noise.keys_from_seeds([9])).x
    np.testing.assert_array_equal(by_seed[1:], alone)
    assert len(np.unique(np.asarray(whole))) == whole.size


def test_stochastic_steps_use_fresh_noise_in_every_step(gaussian):
    denoise, _ = gaussian(FLOW)
    options = {"sampler": Restless(), "times": time_grids.uniform(2), "schedule": FLOW}
    start = jax.jit(functools.partial(sample_trajectory, denoise, **options))
    states = np.asarray(start(jnp.zeros((1, 2000)), key=jax.random.key(0)))
    first, second = states[1] - states[0], states[2] - states[1]
    assert abs(np.mean(first * second)) < 4 / np.sqrt(2000)


@pytest.mark.parametrize(
    "times", [[1.0], 0.5, np.eye(2), [1.0, 0.2, 0.5], [1.5, 0.0], [0.5, -0.1]], ids=lambda times: str(times)
)
def test_grids_that_cannot_be_meant_are_refused(gaussian, times):
    denoise, _ = gaussian(FLOW)
    with pytest.raises(ValueError, match="times must"):
        run(denoise, jnp.ones((1, 2)), times)


def test_keys_for_another_number_of_samples_are_refused(gaussian):
    denoise, _ = gaussian(FLOW)
    with pytest.raises(ValueError, match="3 samples"):
        run(denoise, jnp.ones((3, 2)), [1.0, 0.0], key=jax.random.split(jax.random.key(0), 2))


class Adaptive(sampler.Sampler):
    """Halves its step until Euler and Heun agree: a solver that chooses its own steps between two times of the grid."""

    tolerance = 1e-3

    def init(self, problem, x, times):
        return jnp.float32(0.25)

    def step(self, problem, x, t, t_next, state, keys):
        def attempt(carry):
            x, now, size, nfe = carry
            after = jnp.maximum(now - size, t_next)
            slope = problem.velocity(x, now)
            euler = x + (after - now) * slope
            heun = x + (after - now) * (slope + problem.velocity(euler, after)) / 2
            is_good = jnp.max(jnp.abs(heun - euler)) < self.tolerance
            size = jnp.where(is_good, 1.5 * size, 0.5 * size)
            nfe = nfe + problem.evaluations(now) + problem.evaluations(after)
            return jnp.where(is_good, heun, x), jnp.where(is_good, after, now), size, nfe

        start = (x, t, state, jnp.int32(0))
        x, _, size, nfe = jax.lax.while_loop(lambda carry: carry[1] > t_next, attempt, start)
        return sampler.Step(x, size, nfe)


def test_an_adaptive_solver_fits_the_interface_and_reports_the_evaluations_it_chose(gaussian):
    denoise, flow = gaussian(FLOW, mean=0.3, std=0.05)
    x = jnp.linspace(-2.0, 2.0, 6).reshape(2, 3)
    result = jax.jit(lambda x: run(denoise, x, [1.0, 0.0], Adaptive()))(x)
    np.testing.assert_allclose(result.x, flow(x), atol=0.01)
    assert 8 < result.nfe < 200
