"""One token a word, in any script: splitting, spelling, ids, and what the network makes of them."""

import functools
import itertools
import multiprocessing
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.diffusion import conditioning
from nova_jax.models.text import encoder, words
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules
from nova_jax.types import Conditioning

TINY = words.WordTextEncoder(width=16, depth=1, num_heads=2, length=12, byte_width=4, num_rows=64)
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
CAPTIONS = [
    "a red circle above a blue square",
    "größe größe extraordinarily",
    "extraordinarily uncharacteristically small",
    "größegrößegröße größegrößegröße",
    "a #FF8800 square and a #1a2b3c4d one",
    "猫と犬が好きです",
    f"{FAMILY} {FAMILY} on a \U0001f1e9\U0001f1ea\U0001f1eb\U0001f1f7 flag",
    "gro\u0308ße \u00c4pfel, e\u0301te\u0301",
    "लाल वृत्त के ऊपर",
    "one",
    "",
]


def test_a_caption_is_split_into_words_ideographs_and_symbols():
    for caption, expected in [
        ("a red circle", ["a", "red", "circle"]),
        ("你好 世界", ["你", "好", "世", "界"]),
        ("赤い丸とテスト", ["赤", "い", "丸", "と", "テ", "ス", "ト"]),
        ("red猫cat", ["red", "猫", "cat"]),
        ("สีแดง", ["สี", "แ", "ด", "ง"]),
        ("\u0e20\u0e32\u0e29\u0e32", list("\u0e20\u0e32\u0e29\u0e32")),
        ("한국어 글자", ["한국어", "글자"]),
        ("लाल वृत्त", ["लाल", "वृत्त"]),
        ("தமிழ் எழுத்து", ["தமிழ்", "எழுத்து"]),
        ("شَجَرَة خضراء", ["شَجَرَة", "خضراء"]),
        ("שלום עולם", ["שלום", "עולם"]),
        ("красный круг", ["красный", "круг"]),
        ("50 t-shirts, 3.5", ["50", "t", "-", "shirts", ",", "3", ".", "5"]),
        ("#ff8800 #abc", ["#ff8800", "#abc"]),
        (
            "\u0645\u06cc\u200c\u062e\u0648\u0631\u0645 \u0628",
            ["\u0645\u06cc\u200c\u062e\u0648\u0631\u0645", "\u0628"],
        ),
        ("क्\u200dष लाल", ["क्\u200dष", "लाल"]),
        ("\ufeffa red\u200bcircle", ["a", "red", "circle"]),
        ("#12 #red c# #ff8800zz", ["#", "12", "#", "red", "c", "#", "#", "ff8800zz"]),
    ]:
        assert list(words.split(caption)) == expected


def test_an_emoji_with_what_modifies_it_is_one_token():
    for symbol in [
        "\U0001f44d\U0001f3fd",  # thumbs up, medium skin tone
        FAMILY,
        "\U0001f469\U0001f3fd\u200d\U0001f680",  # woman astronaut of medium skin tone
        "\U0001f1e9\U0001f1ea",  # flag of Germany
        "1\ufe0f\u20e3",  # keycap 1
        "#\ufe0f\u20e3",  # keycap #
        "\u2764\ufe0f",  # heart, as an emoji
        "\u261d\U0001f3fb",
        "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f",  # flag of England
    ]:
        assert words.split(symbol) == (symbol,)
        assert words.split(f"a {symbol}{symbol} b") == ("a", symbol, symbol, "b")


def test_compositions_and_capitals_are_spelt_one_way():
    for one, other in [("größe", "gro\u0308ße"), ("ÉTÉ", "e\u0301te\u0301"), ("A Red CIRCLE", "a red circle"),
                       ("가", "\u1100\u1161"), ("#FF8800", "#ff8800"), ("КРУГ", "круг")]:  # fmt: skip
        assert words.split(one) == words.split(other), (one, other)
        np.testing.assert_array_equal(TINY.tokenize([one]).ids, TINY.tokenize([other]).ids)


def test_spaces_and_control_characters_only_separate():
    for separator in (" ", "   ", "\n", "\t", "\r\n", "\x00", "\x1b", "\u00a0", "\u3000", "\u2028"):
        assert words.split(f"{separator}a{separator}b{separator}") == ("a", "b"), ascii(separator)
    assert words.split(" \n\t") == words.split("") == ()


def test_a_word_is_its_bytes_and_then_zeros():
    assert words.spell("größe", 12).tolist() == [[b + words.FIRST_BYTE for b in "größe".encode()] + [0] * 5]


def test_a_long_word_goes_on_in_tokens_that_are_marked():
    first, second, third = words.spell("abcdefghij", 4).tolist()  # 4, then 3 and 3 beside the mark
    assert bytes(i - words.FIRST_BYTE for i in first) == b"abcd"
    assert [second[0], third[0]] == [words.CONTINUED] * 2
    assert bytes(i - words.FIRST_BYTE for i in second[1:]) == b"efg"
    assert bytes(i - words.FIRST_BYTE for i in third[1:]) == b"hij"
    np.testing.assert_array_equal(words.spell("abcd", 4), [first])


def test_captions_of_different_words_have_different_ids():
    """Also where a word is the beginning of another one, fills a token, or is another one cut in two."""
    alphabet = ["a", "ab", "abcd", "abcdefg", "abcde", "efg", "e", "abcdefgh", "é", "猫", "-"]
    captions = [" ".join(parts) for n in (0, 1, 2) for parts in itertools.product(alphabet, repeat=n)]
    assert len({words.split(caption) for caption in captions}) == len(captions)
    ids, mask = TINY.clone(word_bytes=4).tokenize(captions)
    assert len({row.tobytes() for row in ids}) == len(captions)
    np.testing.assert_array_equal(ids.any(-1), mask)


def test_a_caption_is_a_start_token_the_words_and_padding():
    ids, mask = TINY.tokenize(["a red circle", "extraordinarily", ""])
    assert (ids.shape, ids.dtype, mask.shape) == ((3, 12, 12), np.int32, (3, 12))
    assert mask.sum(1).tolist() == [4, 3, 1]  # 15 letters are two tokens
    assert (ids[:, 0] == [words.START] + [words.NULL] * 11).all()
    assert ids[1, 2, 0] == words.CONTINUED
    assert not ids[~mask].any()


def test_the_empty_caption_is_not_the_null_caption():
    ids, mask = TINY.tokenize([""])
    null_ids, null_mask = TINY.null(1)
    assert mask[:, :1].tolist() == null_mask.tolist() == [[True]]
    assert (ids[:, :1] != null_ids).any()
    states = [apply(TINY)(params(), *tokens)[0][:, 0] for tokens in ((ids, mask), (null_ids, null_mask))]
    assert np.abs(states[0] - states[1]).max() > 1e-2


def test_a_caption_that_does_not_fit_says_how_many_words_it_has_and_how_many_fit():
    TINY.tokenize(["a " * 11])
    with pytest.raises(encoder.CaptionTooLong, match=r"caption 'a a a.*' has 12 words .* and 11 fit"):
        TINY.tokenize(["fine", "a " * 12])
    with pytest.raises(encoder.CaptionTooLong, match=r"has 2 words .* and 1 fit"):
        TINY.clone(length=2).tokenize(["extraordinarily"])


def test_truncation_keeps_the_first_tokens():
    whole, short = TINY.clone(length=40), TINY.clone(length=5)
    for caption in ("a red circle above a blue square", "猫と犬が好きです", "extraordinarily uncharacteristically"):
        ids, mask = short.tokenize([caption], truncate=True)
        np.testing.assert_array_equal(ids, whole.tokenize([caption]).ids[:, :5])
        assert mask.all()


def test_captions_are_cut_where_truncation_cuts_them():
    for caption in CAPTIONS:
        for length, word_bytes in itertools.product(range(1, 12), (4, 12)):
            module = TINY.clone(length=length, word_bytes=word_bytes)
            cut = module.cut(caption)
            assert caption.startswith(cut)
            for ids, expected in zip(module.tokenize([cut]), module.tokenize([caption], truncate=True), strict=True):
                np.testing.assert_array_equal(
                    ids, expected, err_msg=f"length {length}, word_bytes {word_bytes}: {cut!r}"
                )


def test_a_caption_that_fits_is_not_cut_and_nothing_longer_than_a_cut_one_fits():
    for caption in ("a red circle above a blue square", "größe, größe größe", "猫と犬が好きです"):
        count = int(TINY.clone(length=40).tokenize([caption]).mask.sum())
        assert TINY.clone(length=count).cut(caption) == caption
        for length in range(2, count):
            module = TINY.clone(length=length)
            cut = module.cut(caption)
            with pytest.raises(encoder.CaptionTooLong):
                module.tokenize([caption[: len(cut) + 1]])


def test_a_hex_colour_that_fits_is_kept_whole():
    """Its first characters alone are two tokens, "#" and "f", and the whole of it is one."""
    assert TINY.clone(length=3).cut("a #ff8800 b").strip() == "a #ff8800"


def test_ids_are_the_same_in_another_process():
    again = pickle.loads(pickle.dumps(TINY))
    assert again == TINY
    assert hash(again) == hash(TINY)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ids, mask = pool.apply(TINY.tokenize, (CAPTIONS,), {"truncate": True})
    np.testing.assert_array_equal(ids, TINY.tokenize(CAPTIONS, truncate=True).ids)
    np.testing.assert_array_equal(mask, TINY.tokenize(CAPTIONS, truncate=True).mask)


@functools.cache
def params(module=TINY):
    """Parameters that are all random, scales and relative bias included."""
    shapes, rng = jax.eval_shape(module.init, jax.random.key(0), *module.tokenize(["a"])), np.random.default_rng(1)
    return jax.tree.map(lambda a: jnp.asarray(0.5 * rng.standard_normal(a.shape), a.dtype), shapes)


@functools.cache
def apply(module):
    return jax.jit(module.apply)


def states_of(captions, module=TINY, length=None, **changes):
    """States and mask, read at `length` positions."""
    tokens = module.clone(length=length or module.length).tokenize(captions)
    return [np.asarray(a) for a in apply(module.clone(**changes))(params(module.clone(**changes)), *tokens)]


def test_a_word_is_the_same_wherever_it_stands():
    module = TINY.clone(depth=0, positions="none", window=1)
    states, _ = states_of(["red circle", "a blue square beside the large circle", "circle"], module)
    np.testing.assert_array_equal(states[0, 2], states[1, 7])
    np.testing.assert_array_equal(states[0, 2], states[2, 1])
    assert np.abs(states[0, 1] - states[0, 2]).max() > 1e-2


def test_masked_states_are_zero_and_never_influence_the_others():
    ids, mask = TINY.tokenize(["a red circle", "one two three four five"])
    states, out_mask = apply(TINY)(params(), ids, mask)
    np.testing.assert_array_equal(out_mask, mask)
    np.testing.assert_array_equal(states[~mask], 0)
    other = np.where(mask[..., None], ids, 77)
    np.testing.assert_array_equal(apply(TINY)(params(), other, mask)[0], states)


def test_a_mask_of_ones_and_zeros_is_a_mask_of_booleans():
    ids, mask = TINY.tokenize(["a red circle", "one two three four five"])
    states, out_mask = apply(TINY)(params(), ids, mask.astype(np.int64))
    np.testing.assert_array_equal(states, apply(TINY)(params(), ids, mask)[0])
    assert out_mask.dtype == bool


@pytest.mark.long
def test_length_of_padding_changes_nothing():
    """Up to rounding: the softmax sums in another order."""
    for positions in ("relative", "absolute", "none"):
        (short, _), (long, _) = (states_of(["two blue stars"], length=n, positions=positions) for n in (5, 12))
        np.testing.assert_allclose(long[:, :4], short[:, :4], atol=2e-6)
        np.testing.assert_array_equal(long[:, 4:], 0)


def test_every_word_reaches_every_state():
    ids, mask = TINY.tokenize(["a red circle on a"])
    base, _ = apply(TINY)(params(), ids, mask)
    for position in (1, 3, 5):
        changed = ids.copy()
        changed[0, position, 0] += 1
        assert (np.abs(apply(TINY)(params(), changed, mask)[0] - base).max(-1)[mask] > 0).all()


@pytest.mark.parametrize("positions", ["relative", "absolute", "none"])
def test_the_order_of_words_matters_where_there_are_positions_and_only_there(positions):
    one, other = states_of(["red blue circle", "blue red circle"], positions=positions, window=1)[0]
    swapped = other[[0, 2, 1, 3]]
    if positions == "none":
        np.testing.assert_allclose(swapped, one[:4], atol=1e-5)
    else:
        assert np.abs(swapped - one[:4]).max() > 1e-2


@pytest.mark.parametrize(("window", "before", "after"), [(1, 0, 0), (2, 0, 1), (3, 1, 1), (5, 2, 2)])
def test_a_token_is_made_of_those_within_the_window(window, before, after):
    module = TINY.clone(window=window, depth=0, positions="none")
    ids, mask = module.tokenize(["one two three four five six seven eight"])
    base = apply(module)(params(module), ids, mask)[0]
    changed = ids.copy()
    changed[0, 4, 0] += 1
    moved = np.flatnonzero(np.abs(apply(module)(params(module), changed, mask)[0] - base).max(-1)[0])
    assert moved.tolist() == list(range(4 - after, 4 + before + 1))


def test_a_window_tells_the_order_of_words_without_any_positions():
    one, other = states_of(["red blue circle", "blue red circle"], positions="none", window=3)[0]
    assert np.abs(other[[0, 2, 1, 3]] - one[:4]).max() > 1e-2


def test_frozen_words_have_no_gradient_and_the_blocks_have():
    tokens = TINY.tokenize(["a red circle"])
    for is_frozen in (True, False):
        module = TINY.clone(has_frozen_words=is_frozen)
        gradient = jax.jit(jax.grad(lambda p: jnp.sum(module.apply(p, *tokens)[0] ** 3)))(params())["params"]  # noqa: B023
        for name in ("word_0", "word_1", "embed", "spelling_embed"):
            has_gradient = any(np.any(leaf) for leaf in jax.tree.leaves(gradient[name]))
            assert has_gradient != is_frozen, name
        assert all(np.any(leaf) for name in ("blocks", "final_norm") for leaf in jax.tree.leaves(gradient[name]))


def test_frozen_words_give_the_same_states():
    np.testing.assert_array_equal(
        apply(TINY.clone(has_frozen_words=True))(params(), *TINY.tokenize(["a red circle"]))[0],
        apply(TINY)(params(), *TINY.tokenize(["a red circle"]))[0],
    )


def test_the_null_caption_is_that_of_guidance():
    ids, mask = map(jnp.asarray, TINY.tokenize(["a red circle", "猫"]))
    nothing = conditioning.null(Conditioning(text_ids=ids, text_mask=mask))
    null_ids, null_mask = TINY.null(2)
    np.testing.assert_array_equal(nothing.text_ids[:, :1], null_ids)
    np.testing.assert_array_equal(nothing.text_mask[:, :1], null_mask)
    assert not nothing.text_mask[:, 1:].any()
    long, short = (apply(TINY)(params(), *t)[0] for t in ((nothing.text_ids, nothing.text_mask), (null_ids, null_mask)))
    np.testing.assert_allclose(long[:, :1], short, atol=1e-6)
    assert np.abs(short).max() > 1e-2


def test_real_positions_are_those_with_any_id():
    ids, mask = TINY.tokenize(CAPTIONS, truncate=True)
    np.testing.assert_array_equal(encoder.real_positions(ids), mask)
    np.testing.assert_array_equal(encoder.real_positions(ids[..., 0]), mask)


def test_tokens_of_another_spelling_are_refused():
    with pytest.raises(ValueError, match="tokens have 8 ids; this encoder reads word_bytes=12"):
        jax.eval_shape(TINY.init, jax.random.key(0), *TINY.clone(word_bytes=8).tokenize(["a"]))


def test_bfloat16_states_stay_near_float32():
    tokens = TINY.tokenize(["a red circle", "three green squares"])
    exact, low = (apply(TINY.clone(dtype=dtype))(params(), *tokens)[0] for dtype in (jnp.float32, jnp.bfloat16))
    assert low.dtype == jnp.float32
    assert float(jnp.abs(low - exact).max() / jnp.abs(exact).max()) < 0.05


def test_flops_are_those_of_the_compiled_program():
    for depth, window in ((0, 1), (0, 5), (1, 1), (1, 5)):
        module = words.WordTextEncoder(width=128, depth=depth, window=window, length=32)
        tokens = tuple(map(jnp.asarray, module.tokenize(["x"])))
        variables = jax.eval_shape(module.init, jax.random.key(0), *tokens)
        measured = jax.jit(module.apply).lower(variables, *tokens).compile().cost_analysis()["flops"]
        assert module.flops(32) <= measured <= 1.15 * module.flops(32), (depth, window)


def test_every_parameter_has_a_sharding_rule():
    mesh = meshes.MeshConfig(data=2, fsdp=2, tensor=2).make()
    assert jax.tree.structure(rules.shardings(params(), mesh)) == jax.tree.structure(params())


def test_two_tables_tell_words_apart():
    """Of 2000 words 2000^2 / 2 pairs share a row of a table with a chance of 1/1024 each, both with one of 2^-20."""
    rng = np.random.default_rng(0)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    made_up = sorted({"".join(rng.choice(letters, rng.integers(3, 9))) for _ in range(2100)})[:2000]
    ids = np.concatenate([words.spell(word, 12) for word in made_up])[None]
    rows = [np.asarray(words.hash_words(jnp.asarray(ids), table))[0] % 1024 for table in range(words.NUM_TABLES)]
    both = set(zip(*rows, strict=True))
    assert 2000 - len(both) <= 6  # 1.9 expected
    for row in rows:
        assert len(np.unique(row)) > 850  # 1024 (1 - 1/e^(2000/1024)) = 878 expected
    assert np.abs(np.corrcoef(*rows)[0, 1]) < 0.1


def hash_in_python(ids, table):
    """The same formula in Python's integers."""
    value = (2166136261 + table * 2654435761) % 2**32
    for number in ids:
        value = (value ^ number) * 16777619 % 2**32
        value ^= value >> 15
    value = value * 2246822519 % 2**32
    return value ^ (value >> 13)


def test_hashes_are_those_that_runs_were_trained_with():
    """Another hash would give the words of trained runs other rows; the numbers are of `hash_in_python`."""
    ids = np.stack([words.spell(word, 12)[0] for word in ("circle", "猫")])[None]
    hashes = [words.hash_words(jnp.asarray(ids), table)[0].tolist() for table in range(2)]
    assert hashes == [[hash_in_python(word.tolist(), table) for word in ids[0]] for table in range(2)]
    assert hashes == [[1053312551, 1192206023], [326372644, 472656744]]
