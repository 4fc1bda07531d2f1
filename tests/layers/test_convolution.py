import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.layers import convolution


@pytest.fixture
def video():
    return jax.random.normal(jax.random.key(0), (2, 6, 4, 5, 3))


@pytest.fixture
def kernel():
    return jax.random.normal(jax.random.key(1), (3, 3, 3, 3, 2))


def by_definition(x, kernel, time_stride):
    """The module's equation, one product at a time, in float64."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    taps, rows, columns = kernel.shape[:3]
    padded = np.pad(x, ((0, 0), (taps, 0), (rows // 2, rows // 2), (columns // 2, columns // 2), (0, 0)))
    b, f, h, w, _ = x.shape
    y = np.zeros((b, f // time_stride, h, w, kernel.shape[-1]))
    for i, j, u, v in itertools.product(range(y.shape[1]), range(taps), range(rows), range(columns)):
        frame = time_stride * (i + 1) + j  # x_{s(i+1) - k + j} is this frame of the padded video
        y[:, i] += padded[:, frame, u : u + h, v : v + w] @ kernel[j, u, v]
    return y


@pytest.mark.parametrize("time_stride", [1, 2])
def test_causal_conv_is_the_equation_of_its_module(video, kernel, time_stride):
    y = convolution.causal_conv(video, kernel, time_stride=time_stride)
    np.testing.assert_allclose(y, by_definition(video, kernel, time_stride), atol=1e-4)


@pytest.mark.parametrize("time_stride", [1, 2])
@pytest.mark.parametrize("size", [(3, 3, 3), (3, 1, 1)])
def test_a_sum_of_2d_convolutions_equals_one_3d_convolution(video, time_stride, size):
    kernel = jax.random.normal(jax.random.key(1), (*size, 3, 2))
    expected = convolution.conv_3d(video, kernel, time_stride=time_stride)
    np.testing.assert_allclose(
        convolution.sum_of_taps(video, kernel, time_stride=time_stride), expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize("lengths", [(1, 1, 1, 1, 1, 1), (1, 4, 1), (2, 4), (5, 0, 1), (6,)])
def test_chunks_of_any_length_give_the_result_of_the_whole_video(video, lengths):
    layer = convolution.CausalConv(4)
    variables = jax.jit(layer.init)(jax.random.key(2), video)
    whole, last = layer.apply(variables, video)
    past, outputs = None, []
    for chunk in jnp.split(video, np.cumsum(lengths)[:-1], axis=1):
        y, past = layer.apply(variables, chunk, past)
        outputs.append(y)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, atol=1e-5)
    np.testing.assert_array_equal(past, last)


@pytest.mark.parametrize("lengths", [(2, 2, 2), (4, 2)])
def test_a_time_stride_of_two_remembers_one_frame(video, lengths):
    layer = convolution.CausalConv(4, (3, 1, 1), 2)
    variables = jax.jit(layer.init)(jax.random.key(2), video)
    whole, _ = layer.apply(variables, video)
    past, outputs = None, []
    for chunk in jnp.split(video, np.cumsum(lengths)[:-1], axis=1):
        y, past = layer.apply(variables, chunk, past)
        assert past.shape[1] == 1
        outputs.append(y)
    np.testing.assert_allclose(jnp.concatenate(outputs, axis=1), whole, atol=1e-5)


def test_no_output_depends_on_a_later_frame(video, kernel):
    jacobian = jax.jacobian(lambda x: convolution.causal_conv(x, kernel).sum((0, 2, 3, 4)))(video)
    dependence = np.abs(jacobian).sum((1, 3, 4, 5)) > 0  # output frame x input frame
    expected = np.tril(np.ones((6, 6), bool)) & ~np.tril(np.ones((6, 6), bool), -3)
    np.testing.assert_array_equal(dependence, expected)


def test_one_frame_is_the_2d_convolution_with_the_last_tap_bit_for_bit(video, kernel):
    frame = video[:, :1]
    np.testing.assert_array_equal(convolution.causal_conv(frame, kernel), convolution.conv_frames(frame, kernel[-1]))


def test_one_frame_costs_one_2d_convolution(video, kernel):
    lowered = jax.jit(convolution.causal_conv).lower(video[:, :1], kernel).as_text()
    assert lowered.count("stablehlo.convolution") == 1


def test_accelerators_get_one_3d_convolution_and_cpus_get_2d_ones(video, kernel):
    traced = jax.jit(convolution.causal_conv).trace(video, kernel)
    for platform, is_3d in (("cpu", False), ("cuda", True), ("tpu", True)):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("b, 0, 1, 2, f" in text) == is_3d


def test_frame_conv_halves_even_sizes_and_pads_below_and_right():
    x = jnp.arange(16.0).reshape(1, 1, 4, 4, 1)
    y = convolution.conv_frames(x, jnp.ones((3, 3, 1, 1)), stride=2)
    np.testing.assert_array_equal(y[0, 0, :, :, 0], [[45, 39], [66, 50]])


def test_folding_pixels_is_undone_by_unfolding_and_orders_channel_column_row():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4, 6, 5))
    folded = convolution.pixels_to_channels(x, 2)
    assert folded.shape == (2, 3, 2, 3, 20)
    np.testing.assert_array_equal(folded[:, :, 1, 2, 4 * 3 + 2 * 1 + 0], x[:, :, 2 * 1 + 0, 2 * 2 + 1, 3])
    np.testing.assert_array_equal(convolution.channels_to_pixels(folded, 2), x)


def test_repeating_pixels_then_averaging_changes_nothing(video):
    doubled = convolution.repeat_pixels(video)
    b, f, h, w, c = video.shape
    np.testing.assert_allclose(doubled.reshape(b, f, h, 2, w, 2, c).mean((3, 5)), video, atol=1e-6)
