import jax
import jax.numpy as jnp
import pytest

from nova_jax.models import presets


def count_parameters(model):
    x = jnp.zeros((1, 1, 4, 4, model.in_channels))
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, jnp.zeros(1))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("nano", 342.7e3),
        ("S/2", 29.84e6),
        ("B/2", 118.7e6),
        ("L/2", 412.2e6),
        ("XL/2", 606.6e6),
        ("wan-1.3B", 1.419e9),  # published checkpoints
        ("wan-5B", 5.000e9),
        ("wan-14B", 14.289e9),
    ],
)
def test_a_preset_has_its_number_of_parameters(name, count):
    assert count_parameters(presets.dit(name)) == pytest.approx(count, rel=1e-3)


def test_wan_has_the_published_cost_of_81_frames_at_480p():
    # 32 760 tokens; 1678.4 TFLOP counted on the PyTorch module with torch.utils.flop_counter.
    assert presets.dit("wan-14B").flops((21, 60, 104), text_length=512) == pytest.approx(1678.4e12, rel=1e-4)


def test_heads_are_128_wide_from_width_768_on():
    models = [presets.dit(name) for name in presets.DIT]
    assert all(model.width // model.num_heads == 128 for model in models if model.width >= 768)


def test_fields_of_a_preset_can_be_replaced():
    model = presets.dit("nano", in_channels=4, depth=2)
    assert (model.in_channels, model.depth, model.width) == (4, 2, 64)


@pytest.mark.parametrize(("name", "channels"), [("tiny", 4), ("wan2.1", 16), ("wan2.2", 48)])
def test_autoencoders_are_found_by_name(name, channels):
    assert presets.vae(name).latent_channels == channels
    assert presets.vae(name, dtype=jnp.bfloat16).dtype == jnp.bfloat16


@pytest.mark.parametrize(("name", "count"), [("t5-v1.1-xxl", 4.762e9), ("umt5-xxl", 5.681e9)])
def test_text_encoders_are_found_by_name(name, count):
    ids = jnp.zeros((1, 8), int)
    shapes = jax.eval_shape(presets.text_encoder(name).init, jax.random.key(0), ids, ids == 0)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == pytest.approx(count, rel=1e-3)


def test_an_unknown_preset_is_an_error_that_lists_the_names():
    with pytest.raises(ValueError, match=r"'XXL/2'.*nano, S/2.*wan-14B"):
        presets.dit("XXL/2")
