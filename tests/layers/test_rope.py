import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import rope


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def rotate_at(x, frame, row=0, column=0):
    @jax.jit
    def last_token(x):
        rotation = rope.grid_rotation(np.array([frame]), row + 1, column + 1, x.size)
        return rope.rotate(x.reshape(1, 1, 1, -1), rope.Rotation(rotation.cos[-1:], rotation.sin[-1:])).ravel()

    return np.asarray(last_token(x))


@pytest.mark.parametrize(
    ("head_dim", "split"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (24, (8, 8, 8)), (2, (2, 0, 0))]
)
def test_channels_are_shared_out_over_the_axes_as_in_wan(head_dim, split):
    assert rope.split_axes(head_dim) == split


def test_products_depend_on_relative_positions_only():
    q, k = normal(24), normal(24, seed=1)
    here = rotate_at(q, 5, 2, 7) @ rotate_at(k, 3, 1, 4)
    there = rotate_at(q, 1, 3, 4) @ rotate_at(k, -1, 2, 1)
    elsewhere = rotate_at(q, 5, 2, 7) @ rotate_at(k, 3, 1, 5)
    np.testing.assert_allclose(here, there, rtol=1e-5)
    assert abs(here - elsewhere) > 1e-3


def test_rotation_keeps_norms_and_is_the_identity_at_the_origin():
    x = normal(24)
    np.testing.assert_allclose(rotate_at(x, 0), x)
    np.testing.assert_allclose(np.linalg.norm(rotate_at(x, 9, 4, 2)), np.linalg.norm(x), rtol=1e-6)


def test_adjacent_channels_turn_by_position_times_frequency():
    x = jnp.asarray(np.eye(12)[2])  # second pair of the frame axis: 4 channels, frequency theta^(-2/4)
    angle = 3 * 10_000.0**-0.5
    expected = np.zeros(12)
    expected[2:4] = np.cos(angle), np.sin(angle)
    np.testing.assert_allclose(rotate_at(x, 3), expected, atol=1e-6)


def test_tokens_run_over_columns_then_rows_then_frames():
    rotation = jax.jit(lambda: rope.grid_rotation(np.arange(2), 3, 4, 24))()
    assert rotation.cos.shape == (2 * 3 * 4, 12)
    grid = np.asarray(rotation.cos).reshape(2, 3, 4, 12)
    np.testing.assert_array_equal(grid[1, 2, 3, :4], grid[1, 0, 0, :4])  # frames
    np.testing.assert_array_equal(grid[1, 2, 3, 4:8], grid[0, 2, 0, 4:8])  # rows
    np.testing.assert_array_equal(grid[1, 2, 3, 8:], grid[0, 0, 3, 8:])  # columns


def test_angles_of_late_frames_are_exact():
    frame = 20_001
    rotation = jax.jit(lambda: rope.grid_rotation(np.array([frame]), 1, 1, 128))()
    i = np.arange(22)
    exact = np.cos(frame * 10_000.0 ** (-2 * i / 44))
    np.testing.assert_allclose(np.asarray(rotation.cos)[0, :22], exact, atol=1e-6)


def test_bfloat16_is_rotated_in_float32():
    x = normal(1, 4, 2, 24).astype(jnp.bfloat16)
    rotation = rope.grid_rotation(np.arange(4), 1, 1, 24)
    exact = rope.rotate(x.astype(jnp.float32), rotation)
    turned = rope.rotate(x, rotation)
    assert turned.dtype == jnp.bfloat16
    np.testing.assert_array_equal(turned, exact.astype(jnp.bfloat16))


def test_tokens_in_another_order_keep_their_places_and_empty_ones_turn_like_the_first():
    plain = rope.grid_rotation(np.arange(2), 3, 4, 24)
    slots = np.array([23, 5, -1, 0, 17])
    moved = rope.grid_rotation(np.arange(2), 3, 4, 24, slots=slots)
    for a, b in zip(moved, plain, strict=True):
        np.testing.assert_array_equal(a, b[np.maximum(slots, 0)])
