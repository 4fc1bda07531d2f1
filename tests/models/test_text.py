import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nova_jax.models import text
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules

TINY = text.ByteTextEncoder(width=32, depth=1, num_heads=2, byte_width=8)


apply = jax.jit(TINY.apply)


@pytest.fixture(scope="module")
def params():
    return jax.jit(TINY.init)(jax.random.key(0), *text.encode_bytes(["a"], 8))


def decode(ids):
    return bytes(int(i) - text.FIRST_BYTE for i in ids if i >= text.FIRST_BYTE).decode()


def test_ids_hold_a_start_token_and_the_utf8_bytes():
    ids, mask = text.encode_bytes(["ab", "", "größe 猫"], 16)
    assert ids[0, :4].tolist() == [text.START, ord("a") + 2, ord("b") + 2, text.NULL]
    assert mask.sum(1).tolist() == [3, 1, 1 + len("größe 猫".encode())]
    assert [decode(row) for row in ids] == ["ab", "", "größe 猫"]


def test_a_caption_that_does_not_fit_is_an_error_or_cut_between_characters():
    with pytest.raises(ValueError, match=r"has 6 UTF-8 bytes and 4 fit"):
        text.encode_bytes(["猫猫"], 5)
    ids, mask = text.encode_bytes(["猫猫", "abcdefgh"], 6, truncate=True)
    assert [decode(row) for row in ids] == ["猫", "abcde"]
    assert mask.sum(1).tolist() == [4, 6]


def test_64_bytes_become_16_tokens(params):
    states, mask = apply(params, *text.encode_bytes(["a red circle", "x" * 63], 64))
    assert states.shape == (2, 16, 32)
    assert mask.sum(1).tolist() == [4, 16]  # 13 and 64 positions, 4 to a token


def test_length_of_padding_changes_nothing(params):
    """Up to rounding: the softmax sums in another order."""
    (short, _), (long, _) = (apply(params, *text.encode_bytes(["two blue stars"], n)) for n in (16, 48))
    np.testing.assert_allclose(long[:, :4], short, atol=1e-6)
    np.testing.assert_array_equal(long[:, 4:], 0)


def test_ids_under_the_mask_change_nothing(params):
    ids, mask = text.encode_bytes(["a star"], 16)
    other = np.where(mask, ids, 77)
    np.testing.assert_array_equal(apply(params, ids, mask)[0], apply(params, other, mask)[0])


def test_every_byte_reaches_every_token(params):
    ids, mask = text.encode_bytes(["a red circle on a"], 20)
    base, _ = apply(params, ids, mask)
    for position in (1, 9, 17):
        changed = ids.copy()
        changed[0, position] += 1
        assert bool((jnp.abs(apply(params, changed, mask)[0] - base).max(-1) > 0)[mask.reshape(1, 5, 4).any(-1)].all())


def test_null_caption_has_one_state_that_differs_from_the_empty_caption(params):
    null_ids, null_mask = np.zeros((1, 16), np.int32), np.arange(16)[None] == 0
    null, mask = apply(params, null_ids, null_mask)
    empty, _ = apply(params, *text.encode_bytes([""], 16))
    assert mask.tolist() == [[True, False, False, False]]
    assert float(jnp.abs(null[0, 0]).max()) > 0
    assert float(jnp.abs(null - empty).max()) > 1e-3


def test_length_must_be_a_multiple_of_the_group():
    with pytest.raises(ValueError, match="text length 10 is not a multiple of downsample=4"):
        TINY.init(jax.random.key(0), *text.encode_bytes(["a"], 10))


def test_bfloat16_states_stay_near_float32(params):
    inputs = text.encode_bytes(["a red circle", "three green squares"], 32)
    exact, _ = apply(params, *inputs)
    low, _ = jax.jit(TINY.clone(dtype=jnp.bfloat16).apply)(params, *inputs)
    assert low.dtype == jnp.float32
    assert float(jnp.abs(low - exact).max() / jnp.abs(exact).max()) < 0.05


def test_flops_are_those_of_the_compiled_program():
    module = text.ByteTextEncoder(width=128, depth=1)
    ids, mask = text.encode_bytes(["x"], 64)
    params = jax.jit(module.init)(jax.random.key(0), ids, mask)
    measured = jax.jit(module.apply).lower(params, ids, mask).compile().cost_analysis()["flops"]
    assert module.flops(64) <= measured <= 1.15 * module.flops(64)


def test_every_parameter_has_a_sharding_rule(params):
    mesh = meshes.MeshConfig(data=2, fsdp=2, tensor=2).make()
    assert jax.tree.structure(rules.shardings(params, mesh)) == jax.tree.structure(params)


def test_it_learns_which_colour_belongs_to_which_shape():
    """A linear read-out of the mean state must tell `red circle and blue square` from `blue circle and red square`."""
    colours, shapes = ["red", "green", "blue", "yellow"], ["circle", "square", "star"]
    pairs = itertools.product(itertools.permutations(range(4), 2), itertools.permutations(range(3), 2))
    scenes = [dict(zip(s, c, strict=True)) for c, s in pairs]  # shape -> colour, in the order of the caption
    captions = [" and ".join(f"{colours[c]} {shapes[s]}" for s, c in scene.items()) for scene in scenes]
    labels = jnp.array([[scene.get(s, 4) for s in range(3)] for scene in scenes])
    ids, mask = text.encode_bytes(captions, 36)
    module = text.ByteTextEncoder(width=64, depth=1, num_heads=2, byte_width=32)
    params = {"encoder": jax.jit(module.init)(jax.random.key(0), ids, mask), "head": jnp.zeros((64, 15))}
    optimizer = optax.adam(5e-3)

    def logits(params):
        states, token_mask = module.apply(params["encoder"], ids, mask)
        return ((states.sum(1) / token_mask.sum(1, keepdims=True)) @ params["head"]).reshape(-1, 3, 5)

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params), labels).mean()

    @jax.jit
    def step(params, opt_state):
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = optimizer.init(params)
    for _ in range(100):
        params, opt_state = step(params, opt_state)
    assert float((jax.jit(logits)(params).argmax(-1) == labels).mean()) > 0.95
