import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nova_jax.diffusion import DropRates, FlowMatching, MinSNR, RectifiedFlow, Uniform, VariancePreservingCosine
from nova_jax.diffusion import prediction as predictions
from nova_jax.types import Batch, Conditioning, Denoised

MEAN, STD = 0.7, 0.4


@functools.partial(jax.jit, static_argnums=(0, 1))
def evaluate(objective, network, params, batch, seed=0):
    return objective(network, params, batch, jax.random.key(seed))


@functools.cache
def gaussian_network(schedule, kind):
    """The exact conditional mean of the target for data N(MEAN, STD^2), plus params["shift"]."""

    def network(params, x, t, cond):
        alpha, sigma = (f(predictions.right_pad(t, x)) for f in (schedule.alpha, schedule.sigma))
        residual = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        best = Denoised(x0=MEAN + alpha * STD**2 * residual, eps=sigma * residual)
        return predictions.target_from(kind, best, t, schedule) + params["shift"]

    return network


def gaussian_batch(count=1000, frames=2):
    return Batch(MEAN + STD * jax.random.normal(jax.random.key(11), (count, frames, 2, 2, 3)))


def conditional_variance(schedule, kind, t):
    """Var(a x0 + b eps | alpha x0 + sigma eps) for independent Gaussians, where the target is a x0 + b eps."""
    alpha, sigma, one, zero = schedule.alpha(t), schedule.sigma(t), jnp.ones_like(t), jnp.zeros_like(t)
    a = predictions.target_from(kind, Denoised(one, zero), t, schedule)
    b = predictions.target_from(kind, Denoised(zero, one), t, schedule)
    return STD**2 * (a * sigma - b * alpha) ** 2 / (alpha**2 * STD**2 + sigma**2)


@pytest.mark.parametrize(
    ("schedule", "kind", "has_frame_times"),
    [
        (RectifiedFlow(), "velocity", False),
        (RectifiedFlow(), "velocity", True),
        (RectifiedFlow(), "eps", False),
        (VariancePreservingCosine(), "v", True),
        (VariancePreservingCosine(), "x0", False),
    ],
)
def test_the_loss_of_the_exact_network_is_the_conditional_variance(schedule, kind, has_frame_times):
    objective = FlowMatching(
        schedule=schedule, prediction=kind, time_sampling=Uniform(), has_frame_times=has_frame_times
    )
    batch = gaussian_batch()
    loss, _ = evaluate(objective, gaussian_network(schedule, kind), {"shift": 0.0}, batch)
    variance = conditional_variance(schedule, kind, (jnp.arange(4000) + 0.5) / 4000)
    # the loss is a mean of chi-square(1) terms scaled by the variance: four standard deviations of it
    interval = 4 * np.sqrt(2 * (variance**2).mean() / batch.x0.size)
    np.testing.assert_allclose(loss, variance.mean(), atol=float(interval))


def test_the_exact_network_is_the_minimiser():
    batch, network = gaussian_batch(), gaussian_network(RectifiedFlow(), "velocity")
    value = jax.jit(lambda shift: FlowMatching()(network, {"shift": shift}, batch, jax.random.key(0))[0])
    least, slope = jax.value_and_grad(value)(0.0)
    assert abs(slope) < 4 * 2 * np.sqrt(least / batch.x0.size)
    for shift in (-0.3, 0.3):
        np.testing.assert_allclose(value(shift) - least, shift**2 + shift * slope, rtol=1e-3)


@functools.lru_cache
def make_mesh(*shape):
    return Mesh(np.array(jax.devices()[:8]).reshape(shape), ("data", "context"), axis_types=(AxisType.Auto,) * 2)


@pytest.mark.parametrize(
    ("mesh_shape", "spec"),
    [((8, 1), ("data",)), ((2, 4), ("data", None, "context")), ((1, 8), (None, None, "context"))],
)
def test_noise_and_times_are_the_same_to_the_bit_on_every_mesh(mesh_shape, spec):
    def draw(x0):
        drawn = []
        FlowMatching()(lambda params, x, t, cond: drawn.append((x, t)) or x, {}, Batch(x0), jax.random.key(5))
        return drawn[0]

    x0 = jnp.zeros((8, 1, 8, 2, 3))
    sharded = jax.device_put(x0, NamedSharding(make_mesh(*mesh_shape), PartitionSpec(*spec)))
    jax.tree.map(np.testing.assert_array_equal, jax.jit(draw)(x0), jax.jit(draw)(sharded))


def test_loss_and_metrics_do_not_depend_on_the_sharding():
    def network(params, x, t, cond):
        return x * cond.text.mean(axis=(1, 2))[:, None, None, None, None]

    batch = gaussian_batch(16)._replace(cond=Conditioning(text=jnp.ones((16, 3, 2))))
    sharded = jax.device_put(batch, NamedSharding(make_mesh(4, 2), PartitionSpec("data")))
    objective = FlowMatching(drop_rates=DropRates(text=0.5))
    alone, spread = (evaluate(objective, network, {}, b) for b in (batch, sharded))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, spread)


@pytest.mark.long
def test_bins_split_the_loss_by_time_and_an_empty_bin_adds_nothing():
    objective = FlowMatching(time_sampling=Uniform(), num_bins=4, weighting=MinSNR())
    network, params = gaussian_network(RectifiedFlow(), "velocity"), {"shift": 0.0}
    loss, metrics = evaluate(objective, network, params, gaussian_batch(64))
    np.testing.assert_array_equal(metrics["share_by_time"], [0.25, 0.25, 0.25, 0.25])  # times are stratified
    np.testing.assert_allclose(metrics["loss_by_time"].sum(), loss, rtol=1e-6)
    np.testing.assert_array_equal(metrics["loss"], loss)

    _, metrics = evaluate(objective, network, params, gaussian_batch(2))
    assert sorted(metrics["share_by_time"].tolist()) == [0, 0, 0.5, 0.5]
    np.testing.assert_array_equal(metrics["loss_by_time"] == 0, metrics["share_by_time"] == 0)

    _, metrics = evaluate(dataclasses.replace(objective, num_bins=0), network, params, gaussian_batch(2))
    assert set(metrics) == {"loss"}


def test_frame_times_differ_between_frames_and_reach_the_network():
    def network(params, x, t, cond):
        assert t.shape == (8, 2)
        return x + params["shift"] * (t[:, 0] - t[:, 1])[:, None, None, None, None]

    run = functools.partial(evaluate, FlowMatching(has_frame_times=True), network, batch=gaussian_batch(8))
    assert jax.grad(lambda shift: run(params={"shift": shift})[0])(1.0) != 0


def test_the_network_may_compute_in_low_precision_and_the_loss_stays_float32():
    batch = Batch(jnp.ones((2, 1, 2, 2, 1), jnp.bfloat16))
    loss, _ = evaluate(FlowMatching(), lambda params, x, t, cond: x.astype(jnp.bfloat16), {}, batch)
    assert loss.dtype == jnp.float32


def test_captions_are_dropped_before_the_network_sees_them():
    def network(params, x, t, cond):
        return x * (1 + cond.text.sum())

    batch = Batch(jnp.ones((4, 1, 2, 2, 1)), Conditioning(text=jnp.ones((4, 3, 2))))
    always, _ = evaluate(FlowMatching(drop_rates=DropRates(text=1.0)), network, {}, batch)
    without, _ = evaluate(FlowMatching(), lambda params, x, t, cond: x, {}, batch)
    np.testing.assert_allclose(always, without, rtol=1e-6)


def test_the_objective_is_a_value_and_refuses_what_it_cannot_mean():
    assert FlowMatching() == FlowMatching()
    assert hash(FlowMatching()) == hash(FlowMatching())
    with pytest.raises(ValueError, match="num_bins"):
        FlowMatching(num_bins=-1)
