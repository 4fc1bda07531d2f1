import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import (
    RectifiedFlow,
    VariancePreservingCosine,
    classifier_free,
    conditioning,
    guidance,
    make_denoiser,
    prediction,
)
from nova_jax.diffusion import denoiser as denoisers
from nova_jax.sampling import Euler, Heun, sample, time_grids
from nova_jax.types import Conditioning, Denoised

X, T = jax.random.normal(jax.random.key(0), (3, 1, 2, 2, 4)), jnp.array([0.2, 0.5, 0.8])
COND = Conditioning(text=jax.random.normal(jax.random.key(1), (3, 5, 4)), aligned=jnp.ones((3, 1, 2, 2, 1)))
NOW = jnp.array(0.5)


def network(params, x, t, cond):
    keep = cond.text_mask[..., None] if cond.text_mask is not None else 1.0
    text = (cond.text * keep).sum(1)[:, None, None, None, :]
    return jnp.sin(x + text + cond.aligned) * (1 + t[:, None, None, None, None])


DENOISE = make_denoiser(network, {}, RectifiedFlow())


def assert_same(a: Denoised, b: Denoised, **tolerance):
    jax.tree.map(lambda left, right: np.testing.assert_allclose(left, right, **tolerance), a, b)


def test_scale_one_is_the_conditional_model_and_costs_one_evaluation():
    guided = classifier_free(DENOISE, 1.0)
    assert_same(guided(X, T, COND), DENOISE(X, T, COND))
    assert denoisers.evaluations(guided, NOW) == 1
    assert_same(classifier_free(DENOISE, jnp.array(1.0))(X, T, COND), DENOISE(X, T, COND), atol=1e-5)


def test_scale_zero_is_the_unconditional_model_and_costs_one_evaluation():
    guided, without = classifier_free(DENOISE, 0), DENOISE(X, T, conditioning.null(COND))
    assert_same(guided(X, T, COND), without)
    assert denoisers.evaluations(guided, NOW) == 1
    assert_same(classifier_free(DENOISE, jnp.array(0.0))(X, T, COND), without, atol=1e-6)


def test_guidance_is_linear_in_its_scale_and_keeps_x_t():
    at = {scale: classifier_free(DENOISE, scale)(X, T, COND) for scale in (2.0, 4.0, 6.0)}
    middle = jax.tree.map(lambda a, b: (a + b) / 2, at[2.0], at[6.0])
    assert_same(middle, at[4.0], atol=1e-5)
    t = T.reshape(3, 1, 1, 1, 1)
    np.testing.assert_allclose((1 - t) * at[6.0].x0 + t * at[6.0].eps, X, atol=1e-5)


def test_both_answers_come_from_one_call_that_counts_as_two():
    calls = []

    def counted(x, t, cond):
        calls.append(x.shape[0])
        return DENOISE(x, t, cond)

    guided = classifier_free(counted, 3.0)
    guided(X, T, COND)
    assert calls == [6]
    assert denoisers.evaluations(guided, NOW) == 2
    assert denoisers.evaluations(classifier_free(guided, 2.0), NOW) == 4


def test_each_sample_may_have_its_own_scale():
    scales = jnp.array([1.0, 2.0, 5.0])
    together = classifier_free(DENOISE, scales)(X, T, COND)
    for i, scale in enumerate([1.0, 2.0, 5.0]):
        alone = classifier_free(DENOISE, scale)(X, T, COND)
        np.testing.assert_allclose(together.x0[i], alone.x0[i], atol=1e-5)


def test_another_scale_does_not_recompile():
    traces = []

    @jax.jit
    def run(scale):
        traces.append(scale)
        return classifier_free(DENOISE, scale)(X, T, COND).x0

    assert not jnp.array_equal(run(2.0), run(3.0))
    assert len(traces) == 1


def test_guidance_may_keep_parts_of_the_condition():
    null_text = functools.partial(conditioning.null, parts=("text",))
    kept = classifier_free(DENOISE, 0.0, null=null_text)(X, T, COND)
    assert_same(kept, DENOISE(X, T, conditioning.null(COND, parts=("text",))))
    assert not jnp.allclose(kept.x0, classifier_free(DENOISE, 0.0)(X, T, COND).x0)


FLOW = RectifiedFlow()
RULES = {  # each with everything but the scale at its default
    "classifier_free": classifier_free,
    "rescaled": functools.partial(guidance.rescaled, schedule=FLOW),
    "adaptive_projected": functools.partial(guidance.adaptive_projected, schedule=FLOW, max_norm=5.0),
    "zero_star": functools.partial(guidance.zero_star, schedule=FLOW),
    "autoguidance": lambda denoiser, scale, **kwargs: guidance.autoguidance(denoiser, WEAK, scale, **kwargs),
    "chained": lambda denoiser, scale: guidance.chained(denoiser, [scale, scale], [conditioning.null, KEEP_PICTURE]),
    "composed": lambda denoiser, scale: guidance.composed(denoiser, [scale], [lambda cond: cond]),
}
WITH_INTERVAL = ["classifier_free", "rescaled", "adaptive_projected", "zero_star", "autoguidance"]
KEEP_PICTURE = functools.partial(conditioning.null, parts=("text",))


def WEAK(x, t, cond):
    return jax.tree.map(lambda a: 0.8 * a + 0.1, DENOISE(x, t, cond))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_at_scale_one_is_the_conditional_model_and_costs_one_evaluation(rule):
    guided, plain = RULES[rule](DENOISE, 1.0), DENOISE(X, T, COND)
    assert denoisers.evaluations(guided, NOW) == 1
    assert_same(guided(X, T, COND), plain, rtol=1e-6)
    assert_same(jax.jit(lambda w: RULES[rule](DENOISE, w)(X, T, COND))(1.0), plain, atol=2e-5)


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_pulls_harder_at_a_larger_scale_without_recompiling(rule):
    traces = []

    @jax.jit
    def run(scale):
        traces.append(scale)
        return RULES[rule](DENOISE, scale)(X, T, COND).x0

    plain = DENOISE(X, T, COND).x0
    moved = [jnp.linalg.norm(run(scale) - plain) for scale in (1.5, 3.0)]
    assert 0 < moved[0] < moved[1]
    assert len(traces) == 1


def test_a_negative_scale_is_refused():
    for rule in RULES:
        for scale in [-1, -0.5, float("nan")]:
            with pytest.raises(ValueError, match="at least 0"):
                RULES[rule](DENOISE, scale)


@pytest.mark.parametrize("rule", WITH_INTERVAL)
def test_outside_its_interval_guidance_is_the_conditional_model_even_within_one_batch(rule):
    guided = jax.jit(RULES[rule](DENOISE, 3.0, interval=(0.2, 0.5)).__call__)(X, T, COND)  # T is 0.2, 0.5 and 0.8
    always, plain = RULES[rule](DENOISE, 3.0)(X, T, COND), DENOISE(X, T, COND)
    np.testing.assert_allclose(guided.x0[1], always.x0[1], atol=1e-5)
    np.testing.assert_allclose(guided.x0[::2], plain.x0[::2], atol=1e-5)
    assert not np.allclose(guided.x0[1], plain.x0[1], atol=0.01)


@pytest.mark.parametrize("rule", WITH_INTERVAL)
def test_a_walk_pays_for_guidance_only_inside_the_interval(rule):
    guided = RULES[rule](DENOISE, 3.0, interval=(0.25, 0.75))
    times = time_grids.uniform(10)
    assert sample(guided, X, sampler=Euler(), times=times, schedule=FLOW, cond=COND).nfe == 10 + 5
    if rule == "classifier_free":  # Heun asks twice at every time between, once at 1, never at 0
        assert sample(guided, X, sampler=Heun(), times=times, schedule=FLOW, cond=COND).nfe == 19 + 10


def test_outside_the_interval_the_network_never_sees_the_empty_condition():
    rows = []

    def counted(x, t, cond):
        jax.debug.callback(lambda t: rows.append((round(float(t[0]), 1), len(t))), t)
        return DENOISE(x, t, cond)

    guided = classifier_free(counted, 3.0, interval=(0.25, 0.75))
    sample(guided, X, sampler=Euler(), times=time_grids.uniform(5), schedule=FLOW, cond=COND).x.block_until_ready()
    jax.effects_barrier()
    assert sorted(rows) == [(0.2, 3), (0.4, 6), (0.6, 6), (0.8, 3), (1.0, 3)]


def test_an_interval_may_be_traced():
    run = jax.jit(lambda low, high: classifier_free(DENOISE, 3.0, interval=(low, high))(X, T, COND))
    assert_same(run(0.0, 0.1), DENOISE(X, T, COND), atol=1e-5)
    assert_same(run(0.0, 1.0), classifier_free(DENOISE, 3.0)(X, T, COND), atol=1e-5)


@pytest.mark.parametrize("interval", [(0.5, 0.5), (0.8, 0.2), (-0.1, 0.5), (0.5, 1.5)])
def test_an_empty_or_outlying_interval_is_refused(interval):
    with pytest.raises(ValueError, match="interval"):
        classifier_free(DENOISE, 3.0, interval=interval)


def test_a_negative_prompt_stands_in_the_place_of_no_prompt_and_serves_every_sample():
    bad = Conditioning(text=jnp.full((1, 5, 4), 0.3), aligned=jnp.ones((1, 1, 2, 2, 1)))
    guided = classifier_free(DENOISE, 2.0, null=guidance.negative(bad))(X, T, COND)
    against = DENOISE(X, T, jax.tree.map(lambda a: jnp.repeat(a, 3, axis=0), bad))
    plain = DENOISE(X, T, COND)
    assert_same(guided, jax.tree.map(lambda c, u: 2 * c - u, plain, against), atol=1e-5)


def test_guidance_away_from_the_prompt_itself_changes_nothing():
    assert_same(classifier_free(DENOISE, 7.0, null=guidance.negative(COND))(X, T, COND), DENOISE(X, T, COND), atol=1e-5)


def test_conditions_in_a_chain_are_strengthened_one_by_one_in_one_call():
    calls = []

    def counted(x, t, cond):
        calls.append(len(x))
        return DENOISE(x, t, cond)

    nulls = [conditioning.null, KEEP_PICTURE]
    guided = guidance.chained(counted, [1.5, jnp.array([2.0, 5.0, 7.0])], nulls)
    result = guided(X, T, COND)
    assert calls == [9]
    assert denoisers.evaluations(guided, NOW) == 3
    none, picture, both = (DENOISE(X, T, cond).x0 for cond in (conditioning.null(COND), KEEP_PICTURE(COND), COND))
    weight = jnp.array([2.0, 5.0, 7.0]).reshape(3, 1, 1, 1, 1)
    np.testing.assert_allclose(result.x0, none + 1.5 * (picture - none) + weight * (both - picture), atol=2e-5)


def test_a_chain_leaves_out_the_answers_that_its_scales_cancel():
    nulls = [conditioning.null, KEEP_PICTURE]
    equal = guidance.chained(DENOISE, [4.0, 4.0], nulls)
    assert denoisers.evaluations(equal, NOW) == 2
    assert_same(equal(X, T, COND), classifier_free(DENOISE, 4.0)(X, T, COND), atol=2e-5)
    text_only = guidance.chained(DENOISE, [1, 4.0], nulls)
    assert denoisers.evaluations(text_only, NOW) == 2
    assert_same(text_only(X, T, COND), classifier_free(DENOISE, 4.0, null=KEEP_PICTURE)(X, T, COND), atol=2e-5)
    assert denoisers.evaluations(guidance.chained(DENOISE, [0, 0], nulls), NOW) == 1


def test_composed_conditions_add_what_each_changes():
    left, right = (COND._replace(text=jnp.full((3, 5, 4), value)) for value in (0.1, -0.2))
    guided = guidance.composed(DENOISE, [2.0, jnp.array(3.0)], [lambda _: left, lambda _: right])
    none, first, second = (DENOISE(X, T, cond).x0 for cond in (conditioning.null(COND), left, right))
    np.testing.assert_allclose(guided(X, T, COND).x0, none + 2 * (first - none) + 3 * (second - none), atol=2e-5)
    assert denoisers.evaluations(guided, NOW) == 3


def test_conditions_without_a_scale_each_are_refused():
    with pytest.raises(ValueError, match="one scale for each"):
        guidance.chained(DENOISE, [1.0], [conditioning.null, KEEP_PICTURE])
    with pytest.raises(ValueError, match="one scale for each"):
        guidance.composed(DENOISE, [], [])


def test_autoguidance_leads_away_from_the_weaker_denoiser_and_costs_one_evaluation_of_each():
    guided = guidance.autoguidance(DENOISE, WEAK, 2.0)
    strong, weak = DENOISE(X, T, COND), WEAK(X, T, COND)
    assert_same(guided(X, T, COND), jax.tree.map(lambda c, u: 2 * c - u, strong, weak), atol=1e-5)
    assert denoisers.evaluations(guided, NOW) == 2
    assert denoisers.evaluations(guidance.autoguidance(DENOISE, WEAK, 0), NOW) == 1
    assert_same(guidance.autoguidance(DENOISE, WEAK, 0)(X, T, COND), weak)
    both = guidance.autoguidance(classifier_free(DENOISE, 3.0), WEAK, 2.0)
    assert denoisers.evaluations(both, NOW) == 3


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_projected_guidance_with_eta_one_and_rescaled_guidance_by_nothing_are_classifier_free(kind):
    plain = classifier_free(DENOISE, 4.0)(X, T, COND)
    projected = guidance.adaptive_projected(DENOISE, 4.0, schedule=FLOW, eta=1.0, kind=kind)
    assert_same(projected(X, T, COND), plain, atol=1e-4)
    rescaled = guidance.rescaled(DENOISE, 4.0, schedule=FLOW, amount=0, kind=kind)
    assert_same(rescaled(X, T, COND), plain, atol=1e-4)


@pytest.mark.parametrize("schedule", [FLOW, VariancePreservingCosine()], ids=["flow", "cosine"])
def test_rescaled_guidance_keeps_the_spread_of_the_conditional_answer(schedule):
    denoise = make_denoiser(network, {}, schedule)
    velocity = functools.partial(prediction.target_from, "velocity", t=T, schedule=schedule)
    before = velocity(denoise(X, T, COND)).std(axis=(1, 2, 3, 4))
    after = velocity(guidance.rescaled(denoise, 6.0, schedule=schedule, amount=1.0)(X, T, COND)).std(axis=(1, 2, 3, 4))
    raised = velocity(classifier_free(denoise, 6.0)(X, T, COND)).std(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(after, before, rtol=1e-4)
    assert np.all(raised > 1.1 * before)


def test_projected_guidance_moves_x0_across_itself_and_no_further_than_its_threshold():
    plain = DENOISE(X, T, COND).x0.reshape(3, -1)

    def move(**kwargs):
        guided = guidance.adaptive_projected(DENOISE, 3.0, schedule=FLOW, **kwargs)
        return guided(X, T, COND).x0.reshape(3, -1) - plain

    np.testing.assert_allclose(jnp.sum(move() * plain, axis=1), 0, atol=1e-4)
    longest = jnp.linalg.norm(move(eta=1.0, max_norm=0.25), axis=1)
    np.testing.assert_allclose(longest, 2 * 0.25, rtol=1e-4)
    np.testing.assert_allclose(move(max_norm=1e3), move(), atol=1e-5)


def test_a_guided_answer_stays_on_the_line_through_x_t():
    t = T.reshape(3, 1, 1, 1, 1)
    for name, rule in RULES.items():
        if name == "autoguidance":  # its weak answer here is on no line
            continue
        x0, eps = rule(DENOISE, 3.0)(X, T, COND)
        np.testing.assert_allclose((1 - t) * x0 + t * eps, X, atol=2e-5, err_msg=name)


def test_zero_star_gives_back_a_conditional_velocity_that_is_parallel_to_the_unconditional_one():
    def parallel(params, x, t, cond):
        return jnp.cos(x) * cond.reshape(-1, 1, 1, 1, 1)

    denoise = make_denoiser(parallel, {}, FLOW)
    for scale in (0.0, 2.0, 9.0):
        guided = guidance.zero_star(denoise, scale, lambda cond: 0.4 * cond, schedule=FLOW)
        assert_same(guided(X, T, jnp.full(3, 1.7)), denoise(X, T, jnp.full(3, 1.7)), atol=2e-5)


@pytest.mark.parametrize("schedule", [FLOW, VariancePreservingCosine()], ids=["flow", "cosine"])
def test_zero_init_stands_still_at_no_cost_and_then_moves_as_before(schedule):
    denoise = make_denoiser(network, {}, schedule)
    still = guidance.zero_init(denoise, schedule=schedule, above=0.75)
    walk = functools.partial(sample, sampler=Euler(), schedule=schedule, cond=COND)
    first = walk(still, X, times=[1.0, 0.9, 0.7])
    np.testing.assert_allclose(first.x, X, atol=1e-5)
    assert first.nfe == 0
    rest = walk(still, X, times=[0.7, 0.3, 0.0])
    np.testing.assert_allclose(rest.x, walk(denoise, X, times=[0.7, 0.3, 0.0]).x, atol=1e-6)
    assert rest.nfe == 2
    mixed = still(X, T, COND)  # 0.2 and 0.5 move, 0.8 does not
    np.testing.assert_allclose(mixed.x0[:2], denoise(X, T, COND).x0[:2], atol=1e-6)
    np.testing.assert_allclose(prediction.target_from("velocity", mixed, T, schedule)[2], 0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: guidance.rescaled(DENOISE, 2.0, schedule=FLOW, amount=1.5), "amount"),
        (lambda: guidance.adaptive_projected(DENOISE, 2.0, schedule=FLOW, max_norm=0), "max_norm"),
        (lambda: guidance.zero_init(DENOISE, schedule=FLOW, above=2), "zero_init"),
    ],
    ids=["amount", "max_norm", "above"],
)
def test_settings_that_cannot_be_meant_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()


@pytest.mark.parametrize("time", [0.9, 0.6, 0.3])
def test_guidance_equals_that_of_a_public_implementation(shared, float64, time):
    reference = np.load(shared / "reference" / "samplers" / "reference_guidance.npz")
    x, t, cond = jnp.asarray(reference["x"]), jnp.full(16, time), jnp.ones(16)
    with_cond, without = (jnp.repeat(reference[f"t{time}/v_{name}"], 2, 0) for name in ("cond", "uncond"))

    def known(params, x, t, cond):
        return jnp.where(cond[:, None] > 0, with_cond, without)

    def velocity(rule, scale, **kwargs):
        x0, eps = rule(make_denoiser(known, {}, FLOW), scale, null=jnp.zeros_like, **kwargs)(x, t, cond)
        return eps - x0

    for w in (2.0, 5.0):
        saved = functools.partial(lambda name, w: reference[f"t{time}/{name}/w{w}"], w=w)
        np.testing.assert_allclose(velocity(classifier_free, w), saved("cfg"), atol=1e-12)
        rescaled = velocity(guidance.rescaled, w, schedule=FLOW, amount=0.7)
        np.testing.assert_allclose(rescaled, saved("cfg_rescale0.7"), atol=1e-12)
        # Their s has 1e-8 added to its denominator.
        np.testing.assert_allclose(velocity(guidance.zero_star, w, schedule=FLOW), saved("cfg_zero_star"), atol=1e-5)
        for eta in (0.0, 1.0):  # theirs is u + w (orthogonal + eta parallel), of the velocity
            same = (w * eta - 1) / (w - 1)
            projected = velocity(guidance.adaptive_projected, w, schedule=FLOW, kind="velocity", eta=same)
            np.testing.assert_allclose(projected, saved(f"apg_eta{eta}"), atol=1e-12)
