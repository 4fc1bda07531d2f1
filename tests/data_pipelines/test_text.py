import numpy as np
import pytest

from data_pipelines import text


def encode(captions: list[str], length: int):
    ids = np.zeros((len(captions), length), np.int64)
    for row, caption in enumerate(captions):
        data = list(caption.encode()[:length])
        ids[row, : len(data)] = data
    return ids, ids > 0


def test_captions_become_ids_and_mask_and_the_rest_stays():
    batch = {"caption": np.array(["ab", "abcdef"]), "pixels": np.zeros((2, 1, 4, 4, 3), np.float32)}
    out = text.Tokenize(encode, 4)(batch)
    assert sorted(out) == ["pixels", "text_ids", "text_mask"]
    assert out["text_ids"].tolist() == [[97, 98, 0, 0], [97, 98, 99, 100]]
    assert out["text_mask"].tolist() == [[True, True, False, False], [True] * 4]
    assert out["text_ids"].dtype == np.int32


def test_a_batch_without_captions_is_an_error_that_lists_what_there_is():
    with pytest.raises(ValueError, match="only pixels"):
        text.Tokenize(encode, 4)({"pixels": np.zeros((2, 3))})


def test_a_tokenizer_of_another_shape_is_an_error():
    with pytest.raises(ValueError, match=r"\(1, 4\)"):
        text.Tokenize(lambda captions, length: encode(captions, length + 1), 4)({"caption": np.array(["a"])})
