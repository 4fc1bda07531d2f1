"""Masks as tokenizers give them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.types import as_mask

GIVEN = [[1, 1, 0], [1, 0, 0]]


@pytest.mark.parametrize("make", [list, np.array, jnp.array, lambda rows: np.array(rows, np.uint8)])
def test_ones_and_zeros_are_a_mask(make):
    mask = as_mask(make(GIVEN))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, np.array(GIVEN, bool))


def test_ones_and_zeros_are_a_mask_inside_a_compiled_function():
    np.testing.assert_array_equal(jax.jit(as_mask)(np.array(GIVEN)), np.array(GIVEN, bool))


@pytest.mark.parametrize("values", [[[0.0, -np.inf]], [[1.0, 0.0]], [["a"]]])
def test_what_is_neither_boolean_nor_integer_is_refused(values):
    with pytest.raises(TypeError, match=r"a mask of .*: give booleans, or the integers 1 \(real\) and 0 \(padding\)"):
        as_mask(np.array(values))


@pytest.mark.parametrize("value", [2, -1, 255])
def test_other_integers_are_refused_by_value(value):
    with pytest.raises(ValueError, match=f"a mask with the value {value}: its integers are 1"):
        as_mask(np.array([[1, value]]))
