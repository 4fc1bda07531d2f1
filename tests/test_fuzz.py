"""A small share of the mutated inputs of `tests/fuzz.py`, and that its limits are held."""

import contextlib
import time

import numpy as np
import pytest

from tests import fuzz

COUNT = 200


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_a_mutated_input_is_read_or_refused_in_a_sentence(name, tmp_path):
    outcomes, failures = fuzz.run(name, 0, COUNT, 0, tmp_path)
    assert not failures
    assert outcomes["read"]
    assert outcomes["refused"]


@pytest.mark.parametrize("name", fuzz.KINDS)
def test_good_inputs_are_read(name, tmp_path):
    for data in fuzz.KINDS[name].good():
        fuzz.KINDS[name].read(fuzz.KINDS[name].repair(data), tmp_path)


def read_with(read, tmp_path):
    kind = fuzz.Kind(list, lambda data, folder: read(), (ValueError,), lambda data, rng: data)
    with contextlib.suppress(ValueError):
        fuzz._try(kind, b"", tmp_path)


def test_what_is_too_slow_or_too_large_or_no_sentence_fails(tmp_path, monkeypatch):
    def fail(error):
        raise error

    def spin():
        end = time.process_time() + 2
        while time.process_time() < end:
            pass

    monkeypatch.setattr(fuzz, "MAX_SECONDS", 0.5)
    monkeypatch.setattr(fuzz, "MAX_BYTES", 50 * 2**20)
    cases = {
        "stopped after": spin,
        "took .* MB": lambda: np.ones(100 * 2**20, np.uint8),
        "KeyError": lambda: fail(KeyError("a")),
        "no sentence": lambda: fail(ValueError("oops")),
        "half a character": lambda: fail(ValueError("a \ud83d b")),
        "a line of": lambda: fail(ValueError("word " * 1000)),
    }
    for message, read in cases.items():
        with pytest.raises(fuzz.Failed, match=message):
            read_with(read, tmp_path)
    read_with(lambda: fail(ValueError("a sentence that says what is wrong")), tmp_path)
