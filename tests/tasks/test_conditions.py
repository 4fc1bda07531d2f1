"""Conditions as arrays: every channel where it belongs, noise at the level that is told."""

import numpy as np
import pytest

from nova_jax.tasks import conditions

SHAPE, SPACE = (1, 2, 3, 4), 4
RNG = np.random.default_rng(0)
LATENTS = RNG.standard_normal(SHAPE).astype(np.float32)


def parts(channels):
    """The aligned channels by name."""
    c = SHAPE[-1]
    ends = np.cumsum([c, SPACE**2, c, 1])
    assert channels.shape == (*SHAPE[:3], ends[-1])
    assert ends[-1] == conditions.num_channels(c, SPACE)
    return dict(zip(("source", "mask", "control", "strength"), np.split(channels, ends[:-1], axis=-1), strict=True))


def test_nothing_given_is_all_zero():
    assert not conditions.aligned(SHAPE, SPACE).any()


def test_source_and_mask_keep_their_pixels():
    mask = RNG.random((8, 12)) < 0.5
    found = parts(conditions.aligned(SHAPE, SPACE, source=LATENTS, mask=mask))
    np.testing.assert_array_equal(found["source"], LATENTS)
    for row in range(2):
        for column in range(3):
            block = mask[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            np.testing.assert_array_equal(found["mask"][0, row, column], block.ravel())
    assert not found["control"].any()
    assert not found["strength"].any()


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_a_control_picture_is_as_noisy_as_its_strength_says(strength):
    latents = np.ones((1, 60, 60, 4), np.float32) * 3
    channels = conditions.aligned(latents.shape, 1, control=latents, strength=strength, rng=np.random.default_rng(1))
    control, told = channels[..., 5:9], channels[..., 9]
    np.testing.assert_allclose(told, strength)
    assert abs(control.mean() - 3 * strength) < 0.03
    assert abs(control.std() - (1 - strength)) < 0.01


def test_a_control_picture_of_strength_zero_is_as_if_there_were_none():
    np.testing.assert_array_equal(
        conditions.aligned(SHAPE, SPACE, control=LATENTS, strength=0.0), conditions.aligned(SHAPE, SPACE)
    )


def test_references_stand_at_the_time_of_their_noise_and_empty_slots_at_one():
    latents = np.full((2, 50, 50, 4), 2.0, np.float32)
    frames, times = conditions.references(latents, 5, similarity=0.75, rng=np.random.default_rng(0))
    np.testing.assert_allclose(times, [0.25, 0.25, 1, 1, 1])
    assert abs(frames[:2].mean() - 1.5) < 0.02
    assert abs(frames[:2].std() - 0.25) < 0.01
    assert not frames[2:].any()


def test_references_as_they_are_need_no_noise():
    frames, times = conditions.references(LATENTS, 3)
    np.testing.assert_array_equal(frames[:1], LATENTS)
    np.testing.assert_array_equal(times, [0, 1, 1])


def test_colours_come_in_their_order_with_a_mask():
    tokens, is_real = conditions.palette(np.array([[50.0, 20.0, -10.0], [100.0, 0.0, 0.0]]), slots=3)
    np.testing.assert_allclose(tokens, [[0.5, 0.2, -0.1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(is_real, [True, True, False])


def test_a_hidden_picture_is_grey_where_the_mask_is_true():
    picture, mask = RNG.integers(0, 256, (1, 8, 8, 3), np.uint8), RNG.random((8, 8)) < 0.5
    hidden = conditions.hide(picture, mask)
    assert (hidden[:, mask] == conditions.GRAY).all()
    np.testing.assert_array_equal(hidden[:, ~mask], picture[:, ~mask])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: conditions.fold_mask(np.zeros((6, 8), bool), 4), "6 x 8 pixels does not divide"),
        (lambda: conditions.references(np.zeros((3, 2, 2, 4)), 2), "3 reference images, but there is room for 2"),
        (lambda: conditions.palette(np.zeros((11, 3))), "11 colours, but there is room for 10"),
        (lambda: conditions.references(LATENTS, 2, similarity=0.5), "pass rng"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
