"""Element i of a stream of scenes depends on (seed, i) alone."""

import operator
from typing import SupportsIndex

import numpy as np


def make_rng(seed: int, index: int) -> np.random.Generator:
    """A generator for element `index` of stream `seed`: counter-based, so streams are independent and cheap to open.

    Raises:
        ValueError: a seed that is negative, or of more than 64 bits.
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed is {seed}; it must be a whole number from 0 to {2**64 - 1:,}")
    return np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))


def check_index(index: SupportsIndex, length: int) -> int:
    """The index as an int, or IndexError."""
    number = operator.index(index)
    if not 0 <= number < length:
        raise IndexError(f"index is {number}; this source has elements 0 to {length - 1}.")
    return number
