import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.models import dit, text, text_to_latent
from nova_jax.types import Conditioning

X, T = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1, 4, 4, 3)), jnp.float32), jnp.asarray([0.3, 0.8])
IDS, MASK = (jnp.asarray(a) for a in text.encode_bytes(["a red cube", "zwei Bälle"], 16))
NULL_MASK = jnp.asarray([[True] + [False] * 15] * 2)


@functools.cache
def network():
    model = text_to_latent.TextToLatent(
        dit=dit.DiT(width=16, depth=1, num_heads=2, in_channels=3, text_dim=8, freq_dim=8),
        text_encoder=text.ByteTextEncoder(width=8, depth=1, num_heads=2, byte_width=4),
    )
    shapes = jax.eval_shape(model.init, jax.random.key(0), X, T)["params"]
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), shapes)


@functools.cache
def compiled(method):
    model, params = network()
    apply = jax.jit(lambda params, *args: model.apply({"params": params}, *args, method=method))
    return functools.partial(apply, params)


def predict(cond):
    return np.asarray(compiled("__call__")(X, T, cond))


def test_parameters_are_those_of_the_two_parts_whatever_it_was_initialised_with():
    model, params = network()
    with_text = jax.eval_shape(model.init, jax.random.key(0), X, T, Conditioning(text_ids=IDS, text_mask=MASK))[
        "params"
    ]
    assert set(params) == {"dit", "text_encoder"}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, with_text)


def test_encoding_the_text_first_changes_nothing():
    cond = Conditioning(text_ids=IDS, text_mask=MASK)
    encoded = compiled("encode_text")(cond)
    assert encoded.text.shape == (2, 4, 8)
    np.testing.assert_allclose(predict(encoded), predict(cond), atol=1e-6)


def test_the_mask_may_be_left_to_the_ids():
    np.testing.assert_array_equal(
        predict(Conditioning(text_ids=IDS)), predict(Conditioning(text_ids=IDS, text_mask=MASK))
    )


def test_no_text_is_the_null_caption():
    null = Conditioning(text_ids=0 * IDS, text_mask=NULL_MASK)
    np.testing.assert_allclose(predict(None), predict(null), atol=1e-5)
    assert np.abs(predict(None) - predict(Conditioning(text_ids=IDS))).max() > 1e-3


def test_gradients_reach_the_text_encoder():
    model, params = network()
    cond = Conditioning(text_ids=IDS, text_mask=MASK)
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(model.apply({"params": p}, X, T, cond) ** 2)))(params)
    assert np.any(gradient["text_encoder"]["embed"]["embedding"])


def test_the_pooled_text_is_the_mean_of_the_real_states():
    plain, params = network()
    model = text_to_latent.TextToLatent(dit=plain.dit.clone(pooled_dim=8), text_encoder=plain.text_encoder)
    cond = Conditioning(text_ids=IDS, text_mask=MASK)
    encoded = model.apply({"params": params}, cond, method="encode_text")
    real = np.asarray(encoded.text_mask)
    assert not real.all()
    means = [states[mask].mean(0) for states, mask in zip(np.asarray(encoded.text), real, strict=True)]
    np.testing.assert_allclose(encoded.pooled, means, rtol=1e-5, atol=1e-6)
    assert plain.apply({"params": params}, cond, method="encode_text").pooled is None


def test_widths_that_do_not_fit_are_an_error():
    model, _ = network()
    with pytest.raises(ValueError, match=r"pooled_dim=3 must be 0 or text_encoder\.width=8"):
        text_to_latent.TextToLatent(dit=model.dit.clone(pooled_dim=3), text_encoder=model.text_encoder)
    with pytest.raises(ValueError, match=r"text_dim=8 must equal text_encoder\.width=12"):
        text_to_latent.TextToLatent(dit=model.dit, text_encoder=text.ByteTextEncoder(width=12))


def test_flops_are_those_of_both_parts():
    model, _ = network()
    assert model.flops((1, 4, 4), text_length=16) == model.text_encoder.flops(16) + model.dit.flops((1, 4, 4), 4)
