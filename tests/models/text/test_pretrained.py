"""A frozen T5 as a reader of captions: ids, masks, what is cut, and what is wrong with a folder."""

import json
import pickle
import shutil
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import config
from nova_jax.models.text import encoder, pretrained, words
from nova_jax.models.text.byte_groups import ByteTextEncoder
from nova_jax.models.text.pretrained import T5TextEncoder
from tests.models.text import tiny_t5

PAD, END = 0, 1
CAPTIONS = ["a red circle", "", "a large blue square, a small green star and a yellow triangle", "größe, zebra 猫"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t5")
    tiny_t5.write_folder(path)
    return path


def tokens_of(caption):
    """The ids of a caption, by the tokenizer itself."""
    return tiny_t5.make_tokenizer().encode(caption, add_special_tokens=False).ids


def copy_without(folder, target, name):
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns(name))
    return target


def test_all_encoders_are_text_encoders(folder):
    for module in (T5TextEncoder(path=str(folder)), words.WordTextEncoder(), ByteTextEncoder()):
        assert isinstance(module, encoder.TextEncoder)
        assert module.is_frozen == isinstance(module, T5TextEncoder)


def test_a_caption_is_its_tokens_the_end_and_padding(folder):
    ids, mask = T5TextEncoder(path=str(folder), length=20).tokenize(CAPTIONS)
    assert (ids.shape, ids.dtype, mask.shape) == ((4, 20), np.int32, (4, 20))
    for row, real, caption in zip(ids, mask, CAPTIONS, strict=True):
        expected = [*tokens_of(caption), END]
        assert row.tolist() == expected + [PAD] * (20 - len(expected))
        assert real.tolist() == [True] * len(expected) + [False] * (20 - len(expected))
    assert ids[0, :3].tolist() == [3 + tiny_t5.WORDS.index(word) for word in ("a", "red", "circle")]


def test_an_encoder_that_reads_padding_marks_all_of_it_as_text(folder):
    plain, padded = (T5TextEncoder(path=str(folder), length=20, reads_padding=reads) for reads in (False, True))
    np.testing.assert_array_equal(padded.tokenize(CAPTIONS).ids, plain.tokenize(CAPTIONS).ids)
    assert padded.tokenize(CAPTIONS).mask.all()
    assert not plain.tokenize(CAPTIONS).mask.all()


def test_a_caption_that_does_not_fit_says_how_many_tokens_it_has_and_how_many_fit(folder):
    T5TextEncoder(path=str(folder), length=4).tokenize(["a red circle"])
    with pytest.raises(encoder.CaptionTooLong, match=r"caption 'a red circle' has 3 tokens and 2 fit"):
        T5TextEncoder(path=str(folder), length=3).tokenize(["a", "a red circle"])


def test_a_cut_caption_fits_and_keeps_the_first_tokens(folder):
    """All that fit, but for a last one that only marks the beginning of a word."""
    for length in range(2, 16):
        module = T5TextEncoder(path=str(folder), length=length)
        for caption in CAPTIONS:
            cut = module.cut(caption)
            assert caption.startswith(cut)
            kept, whole = tokens_of(cut), tokens_of(caption)
            assert module.tokenize([cut]).ids[0, : len(kept)].tolist() == kept == whole[: len(kept)]
            assert len(kept) >= min(length - 2, len(whole))
            assert (cut == caption) == (len(whole) < length)
    assert T5TextEncoder(path=str(folder), length=3).cut("a red circle") == "a red"


def test_truncation_keeps_the_end_token(folder):
    ids, mask = T5TextEncoder(path=str(folder), length=3).tokenize(["a red circle"], truncate=True)
    assert ids.tolist() == [[*tokens_of("a red"), END]]
    assert mask.all()


def test_sizes_are_read_from_the_config(folder):
    module = T5TextEncoder(path=str(folder))
    assert module.width == 16
    assert module.num_states(7) == 7
    assert module.flops(24) == tiny_t5.make_module().flops(24)


def test_the_null_caption_is_one_position(folder):
    ids, mask = T5TextEncoder(path=str(folder)).null(2)
    assert (ids.tolist(), mask.tolist()) == ([[0], [0]], [[True], [True]])


def test_an_encoder_is_a_value_that_a_config_can_name(folder):
    module = T5TextEncoder(path=str(folder), length=24, dtype=jnp.bfloat16)
    module.tokenize(["a"])
    for again in (pickle.loads(pickle.dumps(module)), config.from_dict(json.loads(json.dumps(config.to_dict(module))))):
        assert again == module
        assert hash(again) == hash(module)
        np.testing.assert_array_equal(again.tokenize(["a star"]).ids, module.tokenize(["a star"]).ids)
    assert len({module, T5TextEncoder(path=str(folder), length=23, dtype=jnp.bfloat16)}) == 2


def test_the_tokenizer_may_lie_elsewhere(folder, tmp_path):
    apart = copy_without(folder, tmp_path / "text_encoder", "tokenizer.json")
    (tmp_path / "tokenizer").mkdir()
    shutil.copy(folder / "tokenizer.json", tmp_path / "tokenizer")
    module = T5TextEncoder(path=str(apart), tokenizer_path=str(tmp_path / "tokenizer"))
    np.testing.assert_array_equal(module.tokenize(CAPTIONS).ids, T5TextEncoder(path=str(folder)).tokenize(CAPTIONS).ids)


def test_a_folder_without_a_tokenizer_says_how_to_get_one(folder, tmp_path):
    apart = copy_without(folder, tmp_path / "t5", "tokenizer.json")
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.json.*tokenizer_path.*save_pretrained") as caught:
        T5TextEncoder(path=str(apart)).tokenize(["a"])
    assert str(apart) in str(caught.value)


def test_a_tokenizer_with_more_tokens_than_the_weights_is_refused(folder, tmp_path):
    apart = copy_without(folder, tmp_path / "t5", "config.json")
    described = json.loads((folder / "config.json").read_text())
    (apart / "config.json").write_text(json.dumps(described | {"vocab_size": 40}))
    with pytest.raises(ValueError, match="has 56 tokens and the weights have embeddings for 40"):
        T5TextEncoder(path=str(apart)).tokenize(["a"])


def test_a_tokenizer_without_an_end_token_is_refused(folder, tmp_path):
    apart = copy_without(folder, tmp_path / "t5", "no file")
    text = (folder / "tokenizer.json").read_text()
    (apart / "tokenizer.json").write_text(text.replace("</s>", "<end>"))
    with pytest.raises(ValueError, match="has no end token </s>"):
        T5TextEncoder(path=str(apart)).tokenize(["a"])


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_file_that_is_a_git_lfs_pointer_or_no_json_is_named(folder, tmp_path, name):
    apart = copy_without(folder, tmp_path / "t5", "no file")
    (apart / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4932\n")
    with pytest.raises(ValueError, match=rf"{name} is a git-lfs pointer, not the file itself: run `git lfs pull`"):
        T5TextEncoder(path=str(apart)).tokenize(["a"])
    (apart / name).write_text("<html>404</html>")
    with pytest.raises(ValueError, match=rf"{name} cannot be read as"):
        T5TextEncoder(path=str(apart)).tokenize(["a"])


def test_a_tokenizer_that_pads_and_truncates_by_itself_is_stopped_from_it(folder, tmp_path):
    apart = copy_without(folder, tmp_path / "t5", "tokenizer.json")
    tokenizer = tiny_t5.make_tokenizer()
    tokenizer.enable_padding(length=8)
    tokenizer.enable_truncation(2)
    tokenizer.save(str(apart / "tokenizer.json"))
    for ours, theirs in zip(*(T5TextEncoder(path=str(p)).tokenize(CAPTIONS) for p in (apart, folder)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_folder_that_is_no_t5_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder of a T5 encoder: it has no config\.json\. Download"):
        T5TextEncoder(path=str(tmp_path / "nowhere")).tokenize(["a"])
    (tmp_path / "config.json").write_text('{"hidden_size": 3, "num_layers": 2}')
    with pytest.raises(ValueError, match="lacks vocab_size, d_model, num_heads, d_kv, d_ff"):
        _ = T5TextEncoder(path=str(tmp_path)).width


def test_without_the_tokenizers_package_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match="`text` extra"):
        pretrained.read_tokenizer(str(tmp_path / "tokenizer.json"), 64)
