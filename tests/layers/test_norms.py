import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import norms

EPS = 1e-6
LAYER, RMS = nn.LayerNorm(EPS, use_bias=False, use_scale=False), nn.RMSNorm(EPS, use_scale=False)
FORMS = {
    "layer": (lambda x: norms.standardize(x, EPS), LAYER),
    "layer_written_out": (lambda x: norms.standardize_written_out(x, EPS), LAYER),
    "rms": (lambda x: norms.rms_normalize(x, EPS), RMS),
    "rms_written_out": (lambda x: norms.rms_normalize_written_out(x, EPS), RMS),
}


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def energy(f, x):
    return jnp.sum(jnp.sin(2 * f(x)))


def slope(f, x):
    return jax.jvp(lambda x: energy(f, x), (x,), (jnp.cos(x),))[1]


@pytest.mark.parametrize("form", FORMS)
def test_norms_and_their_derivatives_are_those_of_autodiff(form):
    ours, theirs = FORMS[form][0], lambda x: FORMS[form][1].apply({}, x)
    x = 3 * normal(2, 5, 16) + 1
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-5)
    for derivative in (jax.grad(energy, 1), slope, jax.grad(slope, 1)):
        a, b = (jax.jit(lambda x, f=f: derivative(f, x))(x) for f in (ours, theirs))  # noqa: B023 (called at once)
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())


def test_standardized_rows_have_mean_zero_and_variance_one():
    h = np.asarray(norms.standardize(100 + normal(2, 5, 64), EPS))
    np.testing.assert_allclose(h.mean(-1), 0, atol=1e-4)  # float32 holds 100 to 8e-6
    np.testing.assert_allclose(h.var(-1), 1, atol=1e-3)


def test_half_precision_is_normalised_in_float32():
    x = (10 + normal(3, 64)).astype(jnp.bfloat16)
    for norm in (norms.standardize, norms.rms_normalize):
        assert norm(x, EPS).dtype == jnp.float32
        np.testing.assert_allclose(norm(x, EPS), norm(x.astype(jnp.float32), EPS), atol=1e-4)


def test_groups_are_normalised_apart_and_share_their_gain():
    x, gain = normal(2, 3, 12), normal(4, seed=1)
    out = norms.RMSNorm(EPS, groups=3).apply({"params": {"scale": gain}}, x)
    parts = [norms.rms_normalize(part, EPS) * gain[None, None] for part in jnp.split(x, 3, axis=-1)]
    np.testing.assert_allclose(out, jnp.concatenate(parts, axis=-1), atol=1e-6)


def test_parameters_are_named_as_in_flax():
    x = normal(2, 8)
    for ours, theirs in ((norms.LayerNorm(EPS), nn.LayerNorm()), (norms.RMSNorm(EPS), nn.RMSNorm())):
        forms = [jax.eval_shape(norm.init, jax.random.key(0), x) for norm in (ours, theirs)]
        assert forms[0] == forms[1]
    assert norms.LayerNorm(EPS, has_affine=False).init(jax.random.key(0), x) == {}
