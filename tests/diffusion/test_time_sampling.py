import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from nova_jax.diffusion import LogitNormal, Shifted, Uniform, time_sampling

SAMPLINGS = [Uniform(), LogitNormal(mean=-0.4, std=1.3), Shifted(base=Uniform(), shift=3.0), Shifted(shift=2.0)]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_quantiles_rise_and_stay_within_zero_and_one(sampling):
    t = sampling.quantile(jnp.linspace(0.0, 1.0, 101))
    assert np.all(np.diff(t) > 0)
    assert t[0] == 0
    assert t[-1] == 1


def test_logit_normal_times_have_normal_logits():
    t = LogitNormal(mean=-0.4, std=1.3).quantile(time_sampling.independent(jax.random.key(0), (20_000,)))
    logits = np.asarray(jnp.log(t / (1 - t)), np.float64)
    assert scipy.stats.kstest(logits, "norm", args=(-0.4, 1.3)).pvalue > 1e-3


def test_a_shift_moves_the_median_to_where_the_shift_maps_it():
    np.testing.assert_allclose(Shifted(base=LogitNormal(), shift=3.0).quantile(jnp.array(0.5)), 0.75, rtol=1e-6)
    # and s t / (1 + (s - 1) t) of a logit-normal time is logit-normal with mean log(s)
    u = jnp.linspace(0.01, 0.99, 9)
    np.testing.assert_allclose(Shifted(shift=3.0).quantile(u), LogitNormal(mean=np.log(3.0)).quantile(u), rtol=1e-5)


@pytest.mark.parametrize("shape", [(16,), (16, 5)], ids=["per sample", "per frame"])
def test_stratified_numbers_put_one_sample_into_every_interval(shape):
    u = time_sampling.stratified(jax.random.key(0), shape)
    assert u.shape == shape
    np.testing.assert_array_equal(jnp.sort((u * 16).astype(int), axis=0).reshape(16, -1)[:, 0], jnp.arange(16))


def test_every_place_in_a_stratified_batch_is_uniform_on_its_own():
    draw = jax.jit(jax.vmap(lambda key: time_sampling.stratified(key, (4,))))
    draws = draw(jax.random.split(jax.random.key(1), 4000))
    for column in np.asarray(draws, np.float64).T:
        assert scipy.stats.kstest(column, "uniform").pvalue > 1e-3


def test_stratification_lowers_the_variance_of_a_batch_mean():
    keys = jax.random.split(jax.random.key(2), 500)

    @functools.partial(jax.jit, static_argnums=0)
    def variance(draw):
        return jax.vmap(lambda key: LogitNormal().quantile(draw(key, (16,))).mean())(keys).var()

    assert variance(time_sampling.stratified) < variance(time_sampling.independent) / 20


@pytest.mark.parametrize("make", [lambda: LogitNormal(std=0.0), lambda: Shifted(shift=-1.0)])
def test_parameters_without_meaning_are_refused(make):
    with pytest.raises(ValueError, match="must be positive"):
        make()
