import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.distillation import adversarial

LOGITS = jnp.asarray([[-30.0, -2.0, 0.5], [0.0, 3.0, 30.0]])
DIRECTION = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])


def judge_linearly(x):
    return jnp.einsum("bij,ij->b", x, DIRECTION)


def test_losses_of_an_undecided_discriminator_are_those_of_a_coin():
    undecided = jnp.zeros((4, 3))
    np.testing.assert_allclose(adversarial.generator_loss(undecided), np.log(2), rtol=1e-6)
    np.testing.assert_allclose(adversarial.discriminator_loss(undecided, undecided[:2]), 2 * np.log(2), rtol=1e-6)


def test_the_discriminator_loss_is_the_cross_entropy_of_real_against_fake():
    real, fake = (1 / (1 + np.exp(-np.asarray(logits, np.float64))) for logits in (LOGITS, LOGITS + 1))
    expected = -np.log(real).mean() - np.log(1 - fake).mean()
    np.testing.assert_allclose(adversarial.discriminator_loss(LOGITS, LOGITS + 1), expected, rtol=1e-5)


def test_the_generator_is_pulled_hardest_where_it_is_found_out():
    slope = jax.grad(adversarial.generator_loss)(LOGITS) * LOGITS.size
    np.testing.assert_allclose(slope, -1 / (1 + np.exp(np.asarray(LOGITS))), rtol=1e-5)
    assert slope[0, 0] < -0.999 < -1e-6 < slope[1, 2] < 0


def test_generator_and_discriminator_pull_fake_logits_apart():
    up = jax.grad(adversarial.generator_loss)(LOGITS)
    down = jax.grad(adversarial.discriminator_loss, argnums=1)(LOGITS, LOGITS)
    assert np.all(up < 0)
    assert np.all(down > 0)


def test_losses_are_finite_and_float32_for_extreme_logits_in_bfloat16():
    extreme = jnp.asarray([-1e4, 1e4], jnp.bfloat16)
    losses = adversarial.generator_loss(extreme), adversarial.discriminator_loss(extreme, extreme)
    assert all(np.isfinite(loss) and loss.dtype == jnp.float32 for loss in losses)


@pytest.mark.parametrize("shape", [(3,), (3, 5)])
def test_a_constant_discriminator_has_no_penalty(shape):
    x, key = jnp.ones((3, 2, 2)), jax.random.key(0)
    constant = jnp.full(shape, 7.0)
    assert adversarial.approximate_r1(lambda x: constant, x, constant, key=key, sigma=0.1) == 0


def test_the_penalty_of_a_linear_discriminator_is_its_squared_gradient_times_the_variance():
    x = jnp.zeros((40_000, 2, 2))
    penalty = adversarial.approximate_r1(judge_linearly, x, judge_linearly(x), key=jax.random.key(1), sigma=0.3)
    np.testing.assert_allclose(penalty, 0.09 * jnp.sum(DIRECTION**2), rtol=0.03)  # four standard errors


def test_the_penalty_tends_to_r1_as_the_noise_vanishes():
    def judge(x):
        return jnp.sin(judge_linearly(x))

    x = jax.random.normal(jax.random.key(2), (40_000, 2, 2))
    r1 = jnp.mean(jnp.sum(jax.grad(lambda x: judge(x).sum())(x) ** 2, axis=(1, 2)))
    ratio = adversarial.approximate_r1(judge, x, judge(x), key=jax.random.key(3), sigma=0.01) / 0.01**2
    np.testing.assert_allclose(ratio, r1, rtol=0.05)


def test_the_penalty_flattens_the_discriminator_from_both_ends():
    x, key = jnp.ones((2, 2, 2)), jax.random.key(4)

    def penalty(scale):
        return adversarial.approximate_r1(
            lambda x: scale * judge_linearly(x), x, scale * judge_linearly(x), key=key, sigma=0.1
        )

    np.testing.assert_allclose(jax.grad(penalty)(2.0), 2 * penalty(2.0) / 2.0, rtol=1e-3)  # a square in the scale
