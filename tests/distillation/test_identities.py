"""At the exact solution every loss of a map is zero, and its gradient is unbiased."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import distillation
from nova_jax.distillation import mean_flow, semigroup
from nova_jax.training import optimizer
from nova_jax.types import Batch, Conditioning, TrainState
from tests.distillation import exact_maps

OPTIMIZER = optimizer.AdamW(peak=1e-3, warmup=0)
ANY_PAIR = distillation.AnyPair(same_share=0.25, full_share=0.1)


def batch(count=256, seed=0):
    x0 = exact_maps.MEAN + exact_maps.STD * np.random.default_rng(seed).standard_normal((count, 1, 2, 2, 1))
    return Batch(jnp.asarray(x0, jnp.float32))


def first_loss(recipe):
    """The loss of the exact student at the first step; its one parameter does nothing."""
    state = distillation.start(recipe, exact_maps.NETWORKS, {"bias": jnp.zeros(1)}, {"bias": jnp.zeros(1)}, OPTIMIZER)
    train_step = recipe.make_step(exact_maps.NETWORKS, OPTIMIZER, ema_decay=0.9)
    return float(train_step(state, batch())[1]["loss"])


def test_the_exact_average_velocity_fulfils_the_eulerian_identity():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)), jnp.float32)
    t = jnp.linspace(0.05, 1.0, 64)
    r = t * jnp.linspace(0.0, 1.0, 64)
    v = exact_maps.velocity({}, x, t, None)

    def u(x, t, r):
        return exact_maps.average_velocity({}, x, t, Conditioning(r=r))

    value, derivative = mean_flow.value_and_derivative(u, x, t, r, v)
    np.testing.assert_allclose(value + (t - r)[:, None] * derivative, v, atol=1e-5)


def test_a_difference_comes_near_the_derivative_in_first_order():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)), jnp.float32)
    t, r = jnp.linspace(0.3, 1.0, 64), jnp.linspace(0.0, 0.1, 64)
    v = exact_maps.velocity({}, x, t, None)

    def error(difference):
        def u(x, t, r):
            return exact_maps.average_velocity({}, x, t, Conditioning(r=r))

        _, exact = mean_flow.value_and_derivative(u, x, t, r, v)
        return float(jnp.abs(mean_flow.value_and_derivative(u, x, t, r, v, difference)[1] - exact).max())

    assert 1.9 < error(0.004) / error(0.002) < 2.1


@pytest.mark.parametrize(
    "recipe",
    [
        distillation.MeanFlow(pairs=ANY_PAIR),
        distillation.MeanFlow(pairs=distillation.ToData()),
        distillation.MeanFlow(pairs=ANY_PAIR, norm_power=1.0),
        distillation.Joint(flow=distillation.MeanFlow(pairs=ANY_PAIR), matching_scale=0.0),
    ],
)
def test_a_flow_map_loss_is_zero_at_the_exact_solution(recipe):
    assert first_loss(recipe) < 1e-8


def test_guidance_distillation_is_zero_where_the_average_velocity_is_the_velocity():
    same = distillation.AnyPair(same_share=1.0)
    assert first_loss(distillation.GuidanceDistillation(pairs=same)) < 1e-8


def test_two_small_steps_of_an_exact_map_are_the_big_one():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 3)), jnp.float32)
    h = jnp.asarray([1.0, 0.5, 0.25, 0.125] * 16)
    t = semigroup.sample_step(jax.random.key(0), h)

    def u(x, t, r):
        return exact_maps.average_velocity({}, x, t, Conditioning(r=r))

    np.testing.assert_allclose(semigroup.two_small_steps(u, x, t, h), u(x, t, t - h), atol=2e-6)


def test_the_shortcut_loss_is_zero_at_the_exact_solution_but_for_the_smallest_steps():
    assert first_loss(distillation.Shortcut(max_steps=256)) < 1e-6


def test_the_consistency_loss_falls_with_the_square_of_the_teachers_local_error():
    coarse, fine = (
        first_loss(distillation.DiscreteConsistency(num_intervals=n, solver="euler", huber=10.0)) for n in (16, 32)
    )
    assert 10 < coarse / fine < 22, "local errors of Euler fall by 4, their squares by 16"


def test_the_mean_flow_gradient_with_data_is_that_with_the_marginal_velocity_on_average():
    """One x_t, one pair of times, many (x0, eps) that could have made it; error bars from their spread."""
    t, r, x_t = jnp.float32(0.6), jnp.float32(0.2), jnp.float32(0.9)
    rng = np.random.default_rng(0)
    std, mean = exact_maps.STD, exact_maps.MEAN
    # x0 given x_t is normal: prior N(mean, std^2), x_t = (1 - t) x0 + t eps
    variance = 1 / (1 / std**2 + (0.4 / 0.6) ** 2)
    posterior = variance * (mean / std**2 + 0.4 * 0.9 / 0.36)
    x0 = posterior + np.sqrt(variance) * rng.standard_normal(40_000)
    v_data = jnp.asarray((0.9 - 0.4 * x0) / 0.6 - x0, jnp.float32)

    def gradient(v):
        def loss(a):
            def u(x, t, r):
                return a * jnp.sin(3 * x) * (1 + t[:, None] - r[:, None]) + a**2

            column = jnp.full((1, 1), x_t)
            value, derivative = mean_flow.value_and_derivative(
                u, column, t.reshape(1), r.reshape(1), jnp.full((1, 1), v)
            )
            return jnp.sum(mean_flow.identity_error(value, derivative, v.reshape(1, 1), (t - r).reshape(1)) ** 2)

        return jax.grad(loss)(jnp.float32(0.7))

    samples = np.asarray(jax.vmap(gradient)(v_data), np.float64)
    marginal = exact_maps.velocity({}, jnp.full((1, 1), x_t), t.reshape(1), None)[0, 0]
    standard_error = samples.std() / np.sqrt(len(samples))
    assert abs(samples.mean() - float(gradient(marginal))) < 3 * standard_error


def test_matching_leaves_a_student_alone_whose_critic_agrees_with_the_teacher():
    recipe = distillation.DMD2()
    extra = {"teacher": {}, "critic": {"network": {}}}
    state = TrainState(jnp.zeros((), jnp.int32), {}, {}, (), extra)

    def loss(shift):
        def student(params, x, t, cond):
            return exact_maps.average_velocity(params, x, t, cond) + shift

        networks = exact_maps.NETWORKS._replace(student=student)
        return recipe.loss(networks, {}, state, batch(), jax.random.key(0))[0]

    assert float(jnp.abs(jax.grad(loss)(0.0))) < 1e-6


def test_matching_moves_a_student_towards_the_teacher():
    """A critic that knows the student's distribution, shifted by +0.3: the student must be moved by less than 0."""
    recipe = distillation.DMD2()
    state = TrainState(jnp.zeros((), jnp.int32), {}, {}, (), {"teacher": {}, "critic": {"network": {}}})

    def critic(params, x, t, cond):
        t = exact_maps.column(t, x)
        return exact_maps.velocity(params, x - (1 - t) * 0.3, t.reshape(-1), cond) - 0.3

    def loss(shift):
        def student(params, x, t, cond):
            return exact_maps.average_velocity(params, x, t, cond) - shift

        networks = exact_maps.NETWORKS._replace(student=student, critic=critic)
        return recipe.loss(networks, {}, state, batch(), jax.random.key(0))[0]

    assert float(jax.grad(loss)(0.3)) > 0.01
