import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import RectifiedFlow, VariancePreservingCosine, make_denoiser, prediction
from nova_jax.diffusion import denoiser as denoisers
from nova_jax.types import Conditioning, Denoised


@pytest.mark.parametrize("schedule", [RectifiedFlow(), VariancePreservingCosine()], ids=["flow", "cosine"])
@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_samplers_need_not_know_what_the_network_predicts(schedule, kind):
    x0, eps = jax.random.normal(jax.random.key(0), (2, 3, 1, 2, 2, 4))
    t = jnp.array([0.2, 0.5, 0.8])
    x_t = prediction.add_noise(x0, eps, t, schedule)

    def network(params, x, t, cond):
        return params["scale"] * prediction.target_from(kind, Denoised(x0, eps), t, schedule)

    found = make_denoiser(network, {"scale": 1.0}, schedule, kind)(x_t, t, Conditioning())
    np.testing.assert_allclose(found.x0, x0, atol=1e-5)
    np.testing.assert_allclose(found.eps, eps, atol=1e-5)


def test_a_denoiser_costs_one_unless_it_declares_otherwise():
    def plain(x, t, cond):
        return Denoised(x, x)

    late = denoisers.declare(plain, lambda t: jnp.where(t < 0.5, 2, 0))
    assert denoisers.evaluations(plain, jnp.array(0.3)) == 1
    assert denoisers.evaluations(late, jnp.array(0.3)) == 2
    assert denoisers.evaluations(late, jnp.array(0.7)) == 0
    np.testing.assert_array_equal(late(jnp.ones((1, 2)), jnp.ones(1), None).x0, jnp.ones((1, 2)))


def test_an_unknown_prediction_is_refused_before_any_call():
    with pytest.raises(Exception, match="velocity"):
        make_denoiser(lambda params, x, t, cond: x, {}, RectifiedFlow(), "score")
