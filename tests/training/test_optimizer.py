"""Optimizers against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nova_jax.training import optimizer


def params():
    rng = np.random.default_rng(0)
    tree = {
        "blocks": {"mlp": {"up": {"kernel": rng.normal(size=(3, 8, 16)), "bias": rng.normal(size=(3, 16))}}},
        "embed": {"embedding": rng.normal(size=(5, 8))},
        "head": {"kernel": rng.normal(size=(8, 4))},
        "norm": {"scale": rng.normal(size=8)},
    }
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def update(choice, gradients, weights):
    transform = choice.make()
    return transform.update(gradients, transform.init(weights), weights)[0]


def test_the_rate_climbs_to_its_peak_and_falls_to_zero():
    choice = optimizer.AdamW(peak=2.0, warmup=4, schedule="cosine", total_steps=24)
    rates = [float(choice.learning_rate(step)) for step in range(30)]
    np.testing.assert_allclose(rates[:4], [0.5, 1.0, 1.5, 2.0])
    assert rates[13] == pytest.approx(1.0)  # half way down: step 4 + 10
    assert rates[23] == pytest.approx(0.0, abs=1e-7)
    assert rates[29] == rates[23]


def test_a_linear_schedule_is_linear_and_a_constant_one_constant():
    linear = optimizer.AdamW(peak=1.0, warmup=0, schedule="linear", total_steps=10)
    np.testing.assert_allclose([linear.learning_rate(step) for step in range(10)], np.linspace(0.9, 0.0, 10), atol=1e-6)
    constant = optimizer.AdamW(peak=1.0, warmup=2)
    assert [float(constant.learning_rate(step)) for step in (0, 1, 2, 10**6)] == [0.5, 1.0, 1.0, 1.0]


def test_the_first_adamw_step_is_the_sign_of_the_gradient_plus_decay():
    weights, choice = params(), optimizer.AdamW(peak=0.1, warmup=0, weight_decay=0.5, clip_norm=None)
    gradients = jax.tree.map(jnp.cos, weights)
    updates = update(choice, gradients, weights)
    expected = -0.1 * (jnp.sign(gradients["head"]["kernel"]) + 0.5 * weights["head"]["kernel"])
    np.testing.assert_allclose(updates["head"]["kernel"], expected, atol=1e-6)


@pytest.mark.parametrize("choice", [optimizer.AdamW, optimizer.Muon])
def test_only_kernels_and_embeddings_decay(choice):
    weights = params()
    zeros = jax.tree.map(jnp.zeros_like, weights)
    updates = update(choice(peak=0.1, warmup=0, weight_decay=0.5), zeros, weights)
    decayed = {
        jax.tree_util.keystr(path, simple=True, separator="/"): jnp.any(u != 0)
        for path, u in jax.tree_util.tree_leaves_with_path(updates)
    }
    assert {name for name, is_decayed in decayed.items() if is_decayed} == {
        "blocks/mlp/up/kernel",
        "embed/embedding",
        "head/kernel",
    }


def test_clipping_bounds_the_norm_of_all_gradients_together():
    weights = params()
    gradients = jax.tree.map(jnp.ones_like, weights)
    transform = optax.chain(optimizer.AdamW(peak=1.0, warmup=0, b1=0.0, b2=0.0, eps=1e6, clip_norm=0.5).make())
    updates = transform.update(gradients, transform.init(weights), weights)[0]
    assert float(optax.global_norm(updates)) == pytest.approx(0.5e-6, rel=1e-3)  # eps dominates: the update is g / eps


def test_a_muon_update_has_the_size_of_an_adam_update():
    weights = params()
    gradients = jax.tree.map(lambda a: jnp.cos(37 * a), weights)
    updates = update(optimizer.Muon(peak=1.0, warmup=0), gradients, weights)
    kernel = updates["blocks"]["mlp"]["up"]["kernel"]
    rms = jnp.sqrt(jnp.mean(kernel**2, axis=(-2, -1)))
    np.testing.assert_allclose(rms, 0.2, rtol=0.2)


def test_muon_leaves_everything_but_hidden_matrices_to_adam():
    weights = params()
    gradients = jax.tree.map(jnp.sin, weights)
    muon = update(optimizer.Muon(peak=1.0, warmup=0), gradients, weights)
    adam = update(optimizer.AdamW(peak=1.0, warmup=0), gradients, weights)
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), muon, adam)
    assert same == {
        "blocks": {"mlp": {"up": {"kernel": False, "bias": True}}},
        "embed": {"embedding": True},
        "head": {"kernel": True},
        "norm": {"scale": True},
    }


def test_muon_takes_embedders_and_the_shared_modulation_where_asked():
    kernel = jnp.ones((3, 4))
    weights = {
        "dit": {"text_embed": {"in": {"kernel": kernel}, "out": {"kernel": kernel}}, "patch_embed": {"kernel": kernel}},
        "time_modulation": {"kernel": kernel},
    }
    gradients = jax.tree.map(jnp.sin, weights)
    blocks, hidden = (
        update(optimizer.Muon(peak=1.0, warmup=0, matrices=m), gradients, weights) for m in ("blocks", "hidden")
    )
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), blocks, hidden)
    assert same == {
        "dit": {"text_embed": {"in": {"kernel": False}, "out": {"kernel": False}}, "patch_embed": {"kernel": True}},
        "time_modulation": {"kernel": False},
    }


def test_adam_scale_scales_what_is_left_to_adam_alone():
    weights = params()
    gradients = jax.tree.map(jnp.sin, weights)
    whole, quarter = (update(optimizer.Muon(peak=1.0, warmup=0, adam_scale=s), gradients, weights) for s in (1.0, 0.25))
    np.testing.assert_allclose(quarter["head"]["kernel"], 0.25 * whole["head"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(quarter["blocks"]["mlp"]["up"]["kernel"], whole["blocks"]["mlp"]["up"]["kernel"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peak": 0.0}, "peak must be positive"),
        ({"peak": float("nan")}, "peak must be positive and finite"),
        ({"warmup": -1}, "and warmup at least 0"),
        ({"schedule": "linear", "total_steps": 0}, "total_steps is 0; give 1 or more"),
    ],
)
def test_impossible_schedules_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        optimizer.AdamW(**fields)


def test_a_schedule_without_an_end_ends_with_the_run_and_one_that_falls_needs_an_end():
    choice = optimizer.Muon(peak=1.0, warmup=0, schedule="linear")
    with pytest.raises(ValueError, match=r"'linear' has no end: give total_steps, or use ending_at\(steps\)"):
        choice.learning_rate(0)
    assert [float(choice.ending_at(4).learning_rate(step)) for step in range(5)] == [0.75, 0.5, 0.25, 0.0, 0.0]
    constant = optimizer.AdamW()
    assert constant.ending_at(4) is constant


def test_a_schedule_may_end_after_the_run_and_not_before():
    choice = optimizer.AdamW(schedule="cosine", total_steps=8)
    assert choice.ending_at(4) is choice
    with pytest.raises(ValueError, match=r"steps=9, .* ends at optimizer.total_steps=8, .* leave .* out"):
        choice.ending_at(9)


def test_a_run_shorter_than_the_warmup_climbs_for_half_of_it():
    choice = optimizer.AdamW(peak=1.0, warmup=1000, schedule="linear", total_steps=8)
    rates = [float(choice.learning_rate(step)) for step in range(8)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_muon_refuses_a_rate_of_zero_for_adam():
    with pytest.raises(ValueError, match="one of blocks, hidden, and adam_scale above 0"):
        optimizer.Muon(adam_scale=0.0)


def test_muon_iterates_in_float32_on_a_cpu_and_in_bfloat16_where_asked():
    weights = params()
    gradients = jax.tree.map(jnp.sin, weights)
    auto, exact, coarse = (
        update(optimizer.Muon(peak=1.0, warmup=0, newton_schulz_dtype=dtype), gradients, weights)["blocks"]["mlp"]["up"]
        for dtype in ("auto", "float32", "bfloat16")
    )
    np.testing.assert_array_equal(auto["kernel"], exact["kernel"])
    assert jnp.abs(coarse["kernel"] - exact["kernel"]).max() > 1e-3
    values = jnp.linalg.svd(coarse["kernel"] / (0.2 * 4), compute_uv=False)
    assert 0.6 < values.min() <= values.max() < 1.3
