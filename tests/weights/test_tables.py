import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.weights import tables
from nova_jax.weights.safetensors import WeightsError
from nova_jax.weights.tables import Entry


def test_a_transposed_linear_layer_computes_the_same():
    weight, x = np.random.default_rng(0).normal(size=(3, 5)), np.arange(5.0)
    np.testing.assert_allclose(x @ tables.linear(weight), weight @ x)


@pytest.mark.parametrize("window", [(3,), (3, 2), (2, 3, 1)])
def test_convolution_moves_channels_last(window):
    kernel = np.arange(4 * 5 * np.prod(window)).reshape(4, 5, *window)
    moved = tables.convolution(kernel)
    assert moved.shape == (*window, 5, 4)
    assert moved[(0,) * len(window)][2, 3] == kernel[(3, 2, *(0,) * len(window))]


def test_numbered_sources_are_stacked_in_order():
    tensors = {f"blocks.{i}.w": np.full((2, 3), i, np.float16) for i in range(11)}
    params = tables.convert([Entry(tables.numbered("blocks.{}.w", 11), "blocks/w/kernel", tables.linear)], tensors)
    kernel = params["blocks"]["w"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((11, 3, 2), np.float32)
    np.testing.assert_array_equal(kernel[:, 0, 0], np.arange(11))


def test_one_tensor_may_fill_several_parameters():
    qkv = np.arange(12.0).reshape(6, 2)
    entries = [Entry("qkv", name, lambda w, i=i: w[2 * i : 2 * i + 2].T) for i, name in enumerate("qkv")]
    params = tables.convert(entries, {"qkv": qkv})
    np.testing.assert_array_equal(np.concatenate([params[n].T for n in "qkv"]), qkv)


def test_missing_and_unknown_tensors_are_all_named():
    entries = [Entry("a", "x"), Entry("b", "y"), Entry("c", "z")]
    with pytest.raises(WeightsError) as caught:
        tables.convert(
            entries, {"a": np.ones(1), "q": np.ones(1), "p": np.ones(1), "decoder.1": np.ones(1)}, unused=["decoder.*"]
        )
    assert str(caught.value) == "2 missing: b, c; 2 unknown: p, q"


def test_long_lists_are_cut_after_twenty_names():
    with pytest.raises(WeightsError) as caught:
        tables.convert([], {f"t{i:02}": np.ones(1) for i in range(23)})
    assert str(caught.value).startswith("23 unknown: t00, t01, ")
    assert str(caught.value).endswith("t19, and 3 more")


def test_a_name_that_cannot_be_printed_is_escaped():
    with pytest.raises(WeightsError, match=r"^1 unknown: 'w\\ud83d'$"):
        tables.convert([], {"w\ud83d": np.ones(1)})


def test_wrong_shapes_are_named_with_both_shapes():
    entries = [
        Entry("w", "w", tables.linear),
        Entry(tables.numbered("b.{}", 2), "b"),
        Entry("s", "s", lambda a: a.squeeze(0)),
    ]
    tensors = {"w": np.ones((2, 3)), "b.0": np.ones(4), "b.1": np.ones(5), "s": np.ones((2, 2))}
    expected = {"w": jnp.ones((2, 3)), "b": jnp.ones((2, 4)), "s": jnp.ones(2)}
    with pytest.raises(WeightsError) as caught:
        tables.convert(entries, tensors, expected=expected)
    assert (
        str(caught.value) == "3 of the wrong shape: b.1 (5,) for b (2, 4), s (2, 2) for s (2,), w (2, 3) for w (2, 3)"
    )


def test_a_table_must_fill_the_module_exactly():
    with pytest.raises(WeightsError, match="1 parameters without a source: y; 1 no parameters of this module: x"):
        tables.convert([Entry("a", "x")], {"a": np.ones(1)}, expected={"y": jnp.ones(1)})


def test_flatten_and_unflatten_are_inverse():
    tree = {"a": {"b": 1, "c": {"d": 2}}, "e": 3}
    assert tables.flatten(tree) == {"a/b": 1, "a/c/d": 2, "e": 3}
    assert tables.unflatten(tables.flatten(tree)) == tree


def test_paths_that_collide_are_refused():
    with pytest.raises(WeightsError, match="its parent 'a' is a parameter itself"):
        tables.unflatten({"a": 1, "a/b": 2})
    with pytest.raises(WeightsError, match="named twice"):
        tables.unflatten({"a/b": 1, "a": 2})


def test_each_parameter_is_placed_as_soon_as_it_is_built():
    seen = []
    tensors = {"a": np.ones((2, 3)), "b": np.ones(1)}
    params = tables.convert(
        [Entry("a", "x/k", tables.linear), Entry("b", "y")],
        tensors,
        dtype=jnp.bfloat16,
        place=lambda path, array: seen.append((path, array.shape, str(array.dtype))) or jax.device_put(array),
    )
    assert seen == [("x/k", (3, 2), "bfloat16"), ("y", (1,), "bfloat16")]
    assert isinstance(params["x"]["k"], jax.Array)


def test_a_source_beyond_the_range_of_the_parameters_is_named():
    entries, large = [Entry(tables.numbered("b.{}", 2), "b"), Entry("single", "s")], np.array([1e5], np.float32)
    fits = {"b.0": np.ones(1), "b.1": np.ones(1), "single": np.ones(1)}
    for name in ("b.1", "single"):
        with pytest.raises(WeightsError, match=rf"'{name}' holds a value of size 100000, and float16 ends at 65504"):
            tables.convert(entries, fits | {name: large}, dtype=np.float16)


@pytest.mark.parametrize("source", [bool, np.uint8, np.int64, np.float16, np.float64])
def test_a_source_of_any_dtype_becomes_a_parameter(source):
    params = tables.convert([Entry("a", "x")], {"a": np.array([0, 1, 1], source)})
    assert params["x"].dtype == np.float32
    np.testing.assert_array_equal(params["x"], [0, 1, 1])


def test_parameters_that_are_not_finite_are_named_with_their_number():
    tables.check_finite({"a": np.ones(2), "i": np.arange(2)})
    with pytest.raises(WeightsError, match=r"^1 with NaN or infinity: b/c \(2 values\); the file is damaged"):
        tables.check_finite({"a": np.ones(2), "b/c": np.array([np.nan, 1, -np.inf])})
