import itertools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nova_jax.models.text import byte_groups, encoder
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules

TINY = byte_groups.ByteTextEncoder(width=32, depth=1, num_heads=2, byte_width=8)
ALIGNED = TINY.clone(aligns_words=True)


apply = jax.jit(TINY.apply)


@pytest.fixture(scope="module")
def params():
    return jax.jit(TINY.init)(jax.random.key(0), *byte_groups.encode_bytes(["a"], 8))


def decode(ids):
    return bytes(int(i) - byte_groups.FIRST_BYTE for i in ids if i >= byte_groups.FIRST_BYTE).decode()


def test_ids_hold_a_start_token_and_the_utf8_bytes():
    ids, mask = byte_groups.encode_bytes(["ab", "", "größe 猫"], 16)
    assert ids[0, :4].tolist() == [byte_groups.START, ord("a") + 2, ord("b") + 2, byte_groups.NULL]
    assert mask.sum(1).tolist() == [3, 1, 1 + len("größe 猫".encode())]
    assert [decode(row) for row in ids] == ["ab", "", "größe 猫"]


def test_a_caption_that_does_not_fit_is_an_error_or_cut_between_characters():
    with pytest.raises(encoder.CaptionTooLong, match=r"has 6 UTF-8 bytes and 4 fit"):
        byte_groups.encode_bytes(["猫猫"], 5)
    ids, mask = TINY.clone(length=6).tokenize(["猫猫", "abcdefgh"], truncate=True)
    assert [decode(row) for row in ids] == ["猫", "abcde"]
    assert mask.sum(1).tolist() == [4, 6]


def test_a_caption_as_ids_is_that_of_encode_bytes_at_the_encoders_length():
    for ours, theirs in zip(TINY.tokenize(["größe 猫"]), byte_groups.encode_bytes(["größe 猫"], 64), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(encoder.CaptionTooLong, match=r"has 64 UTF-8 bytes and 63 fit"):
        TINY.tokenize(["x" * 64])


def groups(captions, module=ALIGNED):
    """The ids of each caption a group at a time, without those that are padding."""
    ids, mask = module.tokenize(captions)
    rows = ids.reshape(len(captions), -1, module.downsample), mask.reshape(len(captions), -1, module.downsample).any(-1)
    return [[tuple(group) for group in row[real].tolist()] for row, real in zip(*rows, strict=True)]


def test_an_aligned_word_is_the_same_groups_wherever_it_stands():
    near, far, twice = groups(["on circle", "one large circle", "circle x circle"])
    assert [decode(group) for group in near[1:]] == ["circ", "le  "]  # "on" lies beside the start token
    assert far[-2:] == twice[-2:] == near[1:]
    plain = groups(["on circle", "one large circle"], TINY)
    assert not set(plain[0]) & set(plain[1]), "without alignment no group is the same"


def test_the_groups_of_an_aligned_caption_are_those_of_its_words():
    words = ["größe", "of", "a", "猫", "cat"]
    for downsample in (2, 3, 4, 8):
        module = ALIGNED.clone(downsample=downsample, length=12 * downsample)
        whole, *alone = groups([" ".join(["I", *words]), *(f"I {word}" for word in words)], module)
        assert whole[1:] == [group for row in alone for group in row[1:]]


def test_captions_are_cut_where_truncation_cuts_them():
    captions = ["a red circle and a blue square", "größe größe größe", "猫猫猫猫猫猫", "one", "aaa xööö", "a,b,c,d,e,f"]
    for module, length, caption in itertools.product((TINY, ALIGNED), (4, 8, 12, 16), captions):
        short = module.clone(length=length)
        cut = short.cut(caption)
        assert caption.startswith(cut)
        for ids, expected in zip(short.tokenize([cut]), short.tokenize([caption], truncate=True), strict=True):
            np.testing.assert_array_equal(ids, expected, err_msg=f"{caption!r} of {length}: {cut!r}")


def test_nothing_longer_than_a_cut_caption_fits():
    for module in (TINY.clone(length=16), ALIGNED.clone(length=16)):
        for caption in ("a red circle and a blue square", "größe größe größe größe", "猫" * 9):
            longer = caption[: len(module.cut(caption)) + 1]
            with pytest.raises(encoder.CaptionTooLong, match="and 15 fit"):
                module.tokenize([longer])


def test_an_encoder_survives_pickling():
    assert pickle.loads(pickle.dumps(ALIGNED)) == ALIGNED
    assert hash(pickle.loads(pickle.dumps(ALIGNED))) == hash(ALIGNED)


def test_the_null_caption_is_one_group_with_one_real_position():
    ids, mask = TINY.null(3)
    assert ids.shape == mask.shape == (3, 4)
    assert not ids.any()
    assert mask.tolist() == [[True, False, False, False]] * 3


def test_64_bytes_become_16_tokens(params):
    states, mask = apply(params, *byte_groups.encode_bytes(["a red circle", "x" * 63], 64))
    assert states.shape == (2, 16, 32)
    assert mask.sum(1).tolist() == [4, 16]  # 13 and 64 positions, 4 to a token
    assert TINY.num_states(64) == 16


def test_length_of_padding_changes_nothing(params):
    """Up to rounding: the softmax sums in another order."""
    (short, _), (long, _) = (apply(params, *byte_groups.encode_bytes(["two blue stars"], n)) for n in (16, 48))
    np.testing.assert_allclose(long[:, :4], short, atol=1e-6)
    np.testing.assert_array_equal(long[:, 4:], 0)


def test_a_mask_of_ones_and_zeros_is_a_mask_of_booleans(params):
    ids, mask = byte_groups.encode_bytes(["a star", "a red circle"], 16)
    states, out_mask = apply(params, ids, mask.astype(np.int64))
    np.testing.assert_array_equal(states, apply(params, ids, mask)[0])
    assert out_mask.dtype == bool


def test_ids_under_the_mask_change_nothing(params):
    ids, mask = byte_groups.encode_bytes(["a star"], 16)
    other = np.where(mask, ids, 77)
    np.testing.assert_array_equal(apply(params, ids, mask)[0], apply(params, other, mask)[0])


def test_every_byte_reaches_every_token(params):
    ids, mask = byte_groups.encode_bytes(["a red circle on a"], 20)
    base, _ = apply(params, ids, mask)
    for position in (1, 9, 17):
        changed = ids.copy()
        changed[0, position] += 1
        assert bool((jnp.abs(apply(params, changed, mask)[0] - base).max(-1) > 0)[mask.reshape(1, 5, 4).any(-1)].all())


def test_null_caption_has_one_state_that_differs_from_the_empty_caption(params):
    null_ids, null_mask = np.zeros((1, 16), np.int32), np.arange(16)[None] == 0
    null, mask = apply(params, null_ids, null_mask)
    empty, _ = apply(params, *byte_groups.encode_bytes([""], 16))
    assert mask.tolist() == [[True, False, False, False]]
    assert float(jnp.abs(null[0, 0]).max()) > 0
    assert float(jnp.abs(null - empty).max()) > 1e-3


def test_length_must_be_a_multiple_of_the_group():
    with pytest.raises(ValueError, match="text length 10 is not a multiple of downsample=4"):
        TINY.init(jax.random.key(0), *byte_groups.encode_bytes(["a"], 10))


def test_bfloat16_states_stay_near_float32(params):
    inputs = byte_groups.encode_bytes(["a red circle", "three green squares"], 32)
    exact, _ = apply(params, *inputs)
    low, _ = jax.jit(TINY.clone(dtype=jnp.bfloat16).apply)(params, *inputs)
    assert low.dtype == jnp.float32
    assert float(jnp.abs(low - exact).max() / jnp.abs(exact).max()) < 0.05


def test_flops_are_those_of_the_compiled_program():
    module = byte_groups.ByteTextEncoder(width=128, depth=1)
    ids, mask = byte_groups.encode_bytes(["x"], 64)
    params = jax.jit(module.init)(jax.random.key(0), ids, mask)
    measured = jax.jit(module.apply).lower(params, ids, mask).compile().cost_analysis()["flops"]
    assert module.flops(64) <= measured <= 1.15 * module.flops(64)


def test_every_parameter_has_a_sharding_rule(params):
    mesh = meshes.MeshConfig(data=2, fsdp=2, tensor=2).make()
    assert jax.tree.structure(rules.shardings(params, mesh)) == jax.tree.structure(params)


@pytest.mark.long
def test_it_learns_which_colour_belongs_to_which_shape():
    """A linear read-out of the mean state must tell `red circle and blue square` from `blue circle and red square`."""
    colours, shapes = ["red", "green", "blue", "yellow"], ["circle", "square", "star"]
    pairs = itertools.product(itertools.permutations(range(4), 2), itertools.permutations(range(3), 2))
    scenes = [dict(zip(s, c, strict=True)) for c, s in pairs]  # shape -> colour, in the order of the caption
    captions = [" and ".join(f"{colours[c]} {shapes[s]}" for s, c in scene.items()) for scene in scenes]
    labels = jnp.array([[scene.get(s, 4) for s in range(3)] for scene in scenes])
    ids, mask = byte_groups.encode_bytes(captions, 36)
    module = byte_groups.ByteTextEncoder(width=64, depth=1, num_heads=2, byte_width=32)
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
