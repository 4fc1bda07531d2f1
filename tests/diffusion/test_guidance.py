import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow, classifier_free, conditioning, make_denoiser
from nova_jax.diffusion import denoiser as denoisers
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


@pytest.mark.parametrize("time", [0.9, 0.6, 0.3])
def test_guidance_equals_that_of_a_public_implementation(shared, time):
    reference = np.load(shared / "reference" / "samplers" / "reference_guidance.npz")
    x, t = jnp.asarray(reference["x"], jnp.float32), jnp.full(16, time, jnp.float32)
    velocities = {name: jnp.asarray(reference[f"t{time}/v_{name}"], jnp.float32) for name in ("cond", "uncond")}

    def known(params, x, t, cond):
        return jnp.where(
            cond[:, None] > 0, jnp.repeat(velocities["cond"], 2, 0), jnp.repeat(velocities["uncond"], 2, 0)
        )

    for scale in (2.0, 5.0):
        guided = classifier_free(make_denoiser(known, {}, RectifiedFlow()), scale, null=jnp.zeros_like)
        x0, eps = guided(x, t, jnp.ones(16))
        np.testing.assert_allclose(eps - x0, reference[f"t{time}/cfg/w{scale}"], atol=1e-4, rtol=1e-5)
