import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import conditioning
from nova_jax.models import dit, text, text_to_latent
from nova_jax.types import Conditioning

X, T = jnp.asarray(np.random.default_rng(0).standard_normal((2, 1, 4, 4, 3)), jnp.float32), jnp.asarray([0.3, 0.8])
DIT = dit.DiT(width=16, depth=1, num_heads=2, in_channels=3, text_dim=8, freq_dim=8)
ENCODERS = {
    "bytes": text.ByteTextEncoder(width=8, depth=1, num_heads=2, byte_width=4, length=16),
    "words": text.WordTextEncoder(width=8, depth=1, num_heads=2, byte_width=4, length=16, num_rows=16),
}
EACH = pytest.mark.parametrize("kind", ENCODERS)


@functools.cache
def network(kind="words"):
    model = text_to_latent.TextToLatent(dit=DIT, text_encoder=ENCODERS[kind])
    shapes = jax.eval_shape(model.init, jax.random.key(0), X, T)["params"]
    rng = np.random.default_rng(1)
    return model, jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), shapes)


@functools.cache
def compiled(kind, method):
    model, params = network(kind)
    apply = jax.jit(lambda params, *args: model.apply({"params": params}, *args, method=method))
    return functools.partial(apply, params)


def predict(kind, cond):
    return np.asarray(compiled(kind, "__call__")(X, T, cond))


def captions(kind):
    ids, mask = map(jnp.asarray, ENCODERS[kind].tokenize(["a red cube", "zwei Bälle"]))
    return Conditioning(text_ids=ids, text_mask=mask)


@EACH
def test_parameters_are_those_of_the_two_parts_whatever_it_was_initialised_with(kind):
    model, params = network(kind)
    with_text = jax.eval_shape(model.init, jax.random.key(0), X, T, captions(kind))["params"]
    assert set(params) == {"dit", "text_encoder"}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, with_text)


@EACH
def test_encoding_the_text_first_changes_nothing(kind):
    encoded = compiled(kind, "encode_text")(captions(kind))
    assert encoded.text.shape == (2, ENCODERS[kind].num_states(16), 8)
    np.testing.assert_allclose(predict(kind, encoded), predict(kind, captions(kind)), atol=2e-6)


@EACH
def test_the_mask_may_be_left_to_the_ids(kind):
    cond = captions(kind)
    np.testing.assert_array_equal(predict(kind, cond._replace(text_mask=None)), predict(kind, cond))


@EACH
def test_no_text_is_the_null_caption(kind):
    null = conditioning.null(captions(kind))
    assert null.text_mask.sum() == 2
    np.testing.assert_allclose(predict(kind, None), predict(kind, null), atol=1e-5)
    assert np.abs(predict(kind, None) - predict(kind, captions(kind))).max() > 1e-3


@pytest.mark.long
@EACH
def test_gradients_reach_the_text_encoder(kind):
    model, params = network(kind)
    energy = jax.grad(lambda p: jnp.sum(model.apply({"params": p}, X, T, captions(kind)) ** 2))
    assert np.any(jax.jit(energy)(params)["text_encoder"]["embed"]["embedding"])


@EACH
def test_the_pooled_text_is_the_mean_of_the_real_states(kind):
    plain, params = network(kind)
    model = text_to_latent.TextToLatent(dit=plain.dit.clone(pooled_dim=8), text_encoder=plain.text_encoder)
    encoded = model.apply({"params": params}, captions(kind), method="encode_text")
    real = np.asarray(encoded.text_mask)
    assert not real.all()
    means = [states[mask].mean(0) for states, mask in zip(np.asarray(encoded.text), real, strict=True)]
    np.testing.assert_allclose(encoded.pooled, means, rtol=1e-5, atol=1e-6)
    assert plain.apply({"params": params}, captions(kind), method="encode_text").pooled is None


def test_widths_that_do_not_fit_are_an_error():
    with pytest.raises(ValueError, match=r"pooled_dim=3 must be 0 or text_encoder\.width=8"):
        text_to_latent.TextToLatent(dit=DIT.clone(pooled_dim=3), text_encoder=ENCODERS["words"])
    with pytest.raises(ValueError, match=r"text_dim=8 must equal text_encoder\.width=12"):
        text_to_latent.TextToLatent(dit=DIT, text_encoder=text.WordTextEncoder(width=12))


def test_flops_are_those_of_both_parts():
    for kind, states in (("bytes", 4), ("words", 16)):
        model, encoder = network(kind)[0], ENCODERS[kind]
        assert model.flops((1, 4, 4), text_length=16) == encoder.flops(16) + DIT.flops((1, 4, 4), states)
        null = encoder.null(1).mask.shape[1]
        assert model.flops((1, 4, 4), text_length=0) == encoder.flops(null) + DIT.flops((1, 4, 4), 1)
