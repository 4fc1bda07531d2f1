import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import Constant, MinSNR, RectifiedFlow, VariancePreservingCosine


def test_min_snr_equals_the_published_formulas_of_every_kind(float64):
    schedule, t = VariancePreservingCosine(), jnp.linspace(0.02, 0.98, 25)
    snr = np.exp(schedule.logsnr(t))
    expected = {"x0": np.minimum(snr, 5), "eps": np.minimum(snr, 5) / snr, "v": np.minimum(snr, 5) / (snr + 1)}
    for kind, weight in expected.items():
        np.testing.assert_allclose(MinSNR(gamma=5.0)(kind, t, schedule), weight, rtol=1e-9)


def test_min_snr_weighs_the_velocity_of_rectified_flow_like_its_x0_error(float64):
    t = jnp.linspace(0.02, 0.98, 25)
    expected = np.minimum(((1 - t) / t) ** 2, 5) * t**2
    np.testing.assert_allclose(MinSNR(gamma=5.0)("velocity", t, RectifiedFlow()), expected, rtol=1e-12)


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
@pytest.mark.parametrize("weighting", [Constant(), MinSNR()])
def test_weights_are_finite_at_both_ends(weighting, kind):
    assert bool(jnp.isfinite(weighting(kind, jnp.array([0.0, 1.0]), RectifiedFlow())).all())


def test_gamma_must_be_positive():
    with pytest.raises(ValueError, match="positive"):
        MinSNR(gamma=0.0)
