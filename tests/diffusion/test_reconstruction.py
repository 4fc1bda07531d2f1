import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nova_jax.diffusion import reconstruction
from nova_jax.models import vae as vaes
from nova_jax.types import Batch


class Fixed(NamedTuple):
    """An autoencoder of known error and posterior: pixels are the latents, and what is decoded differs by `error`."""

    error: float = 0.0
    logvar: float = 0.0

    def encode(self, params, pixels):
        return pixels, jnp.full_like(pixels, self.logvar)

    def sample(self, mean, logvar, key):
        return mean

    def decode_unclipped(self, params, latents):
        return latents + self.error


@pytest.fixture
def pixels():
    return jax.random.uniform(jax.random.key(0), (2, 1, 16, 24, 3), minval=-1.0, maxval=1.0)


def test_a_perfect_autoencoder_pays_only_for_its_posterior(pixels):
    objective = reconstruction.Reconstruction(kl=0.5)
    loss, metrics = objective(Fixed(), {}, Batch(pixels), jax.random.key(1))
    assert float(loss) == pytest.approx(0.5 * float(jnp.mean(pixels**2)) / 2, rel=1e-3)  # logvar 0: KL = mean^2 / 2
    assert float(metrics["l1"]) == float(metrics["pyramid"]) == 0.0
    assert float(metrics["ssim"]) == pytest.approx(0.0, abs=1e-5)
    assert float(metrics["psnr"]) == 100.0


def test_the_loss_is_the_weighted_sum_of_the_terms_it_reports(pixels):
    objective = reconstruction.Reconstruction(l1=0.3, l2=0.5, pyramid=0.7, ssim=1.1, kl=0.01, levels=2)
    loss, metrics = objective(Fixed(error=0.1, logvar=-2.0), {}, Batch(pixels), jax.random.key(1))
    weights = {"l1": 0.3, "l2": 0.5, "pyramid": 0.7, "ssim": 1.1, "kl": 0.01}
    assert set(metrics) == {*weights, "loss", "psnr"}
    assert float(loss) == pytest.approx(sum(w * float(metrics[name]) for name, w in weights.items()), rel=1e-5)
    assert float(metrics["l1"]) == pytest.approx(0.1, rel=1e-4)
    assert float(metrics["l2"]) == pytest.approx(0.01, rel=1e-4)


def test_a_term_of_weight_zero_is_not_computed():
    tiny = jnp.zeros((1, 1, 4, 4, 3))  # too small for SSIM and for three levels
    objective = reconstruction.Reconstruction(pyramid=0.0, ssim=0.0)
    _, metrics = objective(Fixed(), {}, Batch(tiny), jax.random.key(0))
    assert set(metrics) == {"loss", "l1", "kl", "psnr"}


def test_kl_divergence_is_the_integral_it_stands_for():
    mean, logvar = 0.7, -1.2
    z = np.linspace(-12, 12, 200_001)
    log_q = -0.5 * ((z - mean) ** 2 / np.exp(logvar) + logvar + np.log(2 * np.pi))
    log_p = -0.5 * (z**2 + np.log(2 * np.pi))
    integral = np.sum(np.exp(log_q) * (log_q - log_p)) * (z[1] - z[0])
    shape = (1, 1, 1, 1, 1)
    assert float(
        reconstruction.kl_divergence(jnp.full(shape, mean), jnp.full(shape, logvar))[0, 0, 0, 0, 0]
    ) == pytest.approx(integral, rel=1e-5)


def test_each_level_of_the_pyramid_sees_its_own_octave():
    """Stripes of period 2, 4, 8 belong to levels 0, 1, 2; a constant to the rest; each counts its amplitude once."""
    columns = np.arange(16)
    for period in (2, 4, 8):
        stripes = np.where(columns % period < period // 2, 0.3, -0.3)
        error = jnp.asarray(np.broadcast_to(stripes[None, None, None, :, None], (1, 1, 16, 16, 3)))
        assert float(reconstruction.pyramid_error(error, 3)) == pytest.approx(0.3, rel=1e-5)
        finer = int(np.log2(period)) - 1
        assert float(reconstruction.pyramid_error(error, finer)) == pytest.approx(0.3, rel=1e-5)
    assert float(reconstruction.pyramid_error(jnp.full((1, 1, 16, 16, 3), 0.3), 3)) == pytest.approx(0.3, rel=1e-5)


def test_the_pyramid_weighs_a_coarse_error_more_than_l1_does():
    """Noise and a smooth error of equal L1: the noise is averaged away at coarse levels, the smooth error is not."""
    noise = jax.random.normal(jax.random.key(0), (1, 1, 32, 32, 3))
    both = noise + jnp.abs(noise).mean()
    gain = reconstruction.pyramid_error(both, 3) - reconstruction.pyramid_error(noise, 3)
    assert float(gain) > 1.5 * float(jnp.abs(both).mean() - jnp.abs(noise).mean())


def test_what_flickers_costs_motion_and_what_stays_does_not():
    flicker = jnp.asarray([0.1, -0.1, 0.1, -0.1]).reshape(1, 4, 1, 1, 1)
    assert float(reconstruction.motion_error(flicker)) == pytest.approx(0.2, rel=1e-5)
    assert float(reconstruction.motion_error(jnp.full((1, 4, 2, 2, 3), 0.1))) == 0.0
    assert float(reconstruction.motion_error(flicker[:, :1])) == 0.0


def test_pictures_and_clips_share_one_loss_with_a_term_for_motion(pixels):
    objective = reconstruction.Reconstruction(l1=0.0, pyramid=0.0, ssim=0.0, kl=0.0, motion=2.0)
    error = 0.1 * jnp.arange(2.0).reshape(1, 2, 1, 1, 1)
    clip = Batch(jnp.repeat(pixels, 2, axis=1))
    loss, metrics = objective(Fixed(error), {}, clip, jax.random.key(1))
    assert float(loss) == pytest.approx(0.2, rel=1e-4)
    assert set(metrics) == {"loss", "motion", "psnr"}
    loss, _ = objective(Fixed(0.1), {}, Batch(pixels), jax.random.key(1))
    assert float(loss) == 0.0


def test_ssim_is_the_mean_over_gaussian_windows_of_the_published_formula(pixels):
    y = pixels + 0.2 * jax.random.normal(jax.random.key(1), pixels.shape)
    offsets = np.arange(11) - 5
    window = np.exp(-0.5 * (offsets[:, None] ** 2 + offsets[None] ** 2) / 1.5**2)
    window = (window / window.sum())[..., None]
    c1, c2 = 0.02**2, 0.06**2
    values = []
    for i in range(16 - 10):
        for j in range(24 - 10):
            a, b = (np.asarray(v[0, 0, i : i + 11, j : j + 11], np.float64) for v in (pixels, y))
            mean_a, mean_b = ((window * v).sum((0, 1)) for v in (a, b))
            var_a, var_b = ((window * (v - m) ** 2).sum((0, 1)) for v, m in ((a, mean_a), (b, mean_b)))
            covariance = (window * (a - mean_a) * (b - mean_b)).sum((0, 1))
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            values.append(luminance * (2 * covariance + c2) / (var_a + var_b + c2))
    assert float(reconstruction.ssim(y, pixels)[0, 0]) == pytest.approx(np.mean(values), rel=1e-4)
    np.testing.assert_allclose(reconstruction.ssim(y, pixels), reconstruction.ssim(pixels, y), rtol=1e-5)


def test_psnr_of_a_known_error_is_in_decibels_of_the_pixel_range():
    x = jnp.zeros((2, 1, 4, 4, 3))
    np.testing.assert_allclose(reconstruction.psnr(x + 0.2, x), 20.0, rtol=1e-5)  # 20 log10(2 / 0.2)


def test_latent_statistics_normalise_what_the_posterior_draws():
    class Drawn(NamedTuple):
        def encode(self, params, pixels):
            mean = pixels * jnp.array([1.0, 2.0, 3.0]).reshape(1, 1, 1, 1, 3) + 5.0
            return mean, jnp.full_like(mean, np.log(0.5))

        def sample(self, mean, logvar, key):
            return mean

        def decode_unclipped(self, params, latents):
            return latents

    batches = [jax.random.normal(jax.random.key(i), (3, 1, 8, 8, 3)) for i in range(5)]
    mean, std = reconstruction.latent_statistics(Drawn(), {}, batches)
    values = np.concatenate([np.asarray(b, np.float64) for b in batches]).reshape(-1, 3) * [1, 2, 3] + 5
    np.testing.assert_allclose(mean, values.mean(0), rtol=1e-5)
    np.testing.assert_allclose(std, np.sqrt(values.var(0) + 0.5), rtol=1e-5)
    vae = dataclasses.replace(vaes.tiny(latent_channels=3), latents_mean=mean, latents_std=std)
    assert vae.latents_std == std


@pytest.mark.long
def test_a_small_autoencoder_learns_from_scratch():
    vae = vaes.tiny(width=8, num_blocks=1)
    objective = reconstruction.Reconstruction(ssim=0.0)
    rows, columns = jnp.meshgrid(jnp.linspace(-1, 1, 16), jnp.linspace(-1, 1, 16), indexing="ij")
    batch = Batch(jnp.stack([rows, columns, -rows], -1)[None, None] * jnp.array([1.0, -0.5]).reshape(2, 1, 1, 1, 1))
    params = jax.jit(vae.init)(jax.random.key(0))
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(params, state, key):
        (_, metrics), gradient = jax.value_and_grad(objective.__call__, argnums=1, has_aux=True)(
            vae, params, batch, key
        )
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, metrics

    state, history = optimizer.init(params), []
    for i in range(40):
        params, state, metrics = step(params, state, jax.random.fold_in(jax.random.key(1), i))
        history.append(float(metrics["psnr"]))
    assert history[-1] > history[0] + 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reconstruction.pyramid_error(jnp.zeros((1, 1, 12, 16, 3)), 3), "multiples of 8"),
        (lambda: reconstruction.ssim(jnp.zeros((1, 1, 8, 16, 3)), jnp.zeros((1, 1, 8, 16, 3))), "11 x 11"),
        (lambda: reconstruction.latent_statistics(vaes.tiny(), {}, []), "no batches"),
    ],
)
def test_impossible_inputs_are_refused_with_the_reason(call, message):
    with pytest.raises(ValueError, match=message):
        call()
