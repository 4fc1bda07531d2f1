import jax
import jax.numpy as jnp
import pytest

from nova_jax.models import dit, flops
from nova_jax.types import Conditioning


@pytest.mark.parametrize(
    ("width", "depth", "gmacs"), [(384, 12, 6.06), (768, 12, 23.01), (1024, 24, 80.71), (1152, 28, 118.64)]
)
def test_formula_gives_the_published_cost_of_dit_at_256_pixels(width, depth, gmacs):
    # Peebles & Xie 2022, arXiv:2212.09748, table 4: their Gflops are multiply-adds.
    paper = flops.Transformer(
        width=width, depth=depth, mlp_dim=4 * width, patch_in=4 * 4, patch_out=4 * 8, modulation="per_block"
    )
    assert paper.forward(tokens=256) / 2e9 == pytest.approx(gmacs, rel=1e-3)


def test_formula_gives_the_cost_of_dit_at_512_pixels():
    paper = flops.Transformer(
        width=1152, depth=28, mlp_dim=4 * 1152, patch_in=4 * 4, patch_out=4 * 8, modulation="per_block"
    )
    assert paper.forward(tokens=1024) / 2e9 == pytest.approx(524.60, rel=1e-3)  # table 6 of the same paper


@pytest.mark.parametrize("text_attention", ["cross", "joint"])
def test_formula_agrees_with_the_compiler_on_an_unscanned_network(text_attention):
    model = dit.DiT(
        width=192, depth=2, num_heads=3, in_channels=4, text_dim=64, scan_unroll=2, remat="none",
        aligned_channels=2, has_second_time=True, has_guidance=True, text_attention=text_attention,
    )  # fmt: skip
    x, t = jnp.zeros((1, 2, 16, 16, 4)), jnp.zeros(1)
    cond = Conditioning(text=jnp.zeros((1, 24, 64)), aligned=jnp.zeros((1, 2, 16, 16, 2)), r=t, guidance_scale=t)
    params = jax.eval_shape(model.init, jax.random.key(0), x, t, cond)
    analysis = jax.jit(model.apply).lower(params, x, t, cond).compile().cost_analysis()
    assert model.flops((2, 16, 16), text_length=24) == pytest.approx(analysis["flops"], rel=0.05)


def test_extra_frames_cost_as_much_as_frames_of_the_latents():
    model = dit.DiT(width=64, depth=2, num_heads=2, in_channels=4, text_dim=8, num_frame_roles=1)
    in_place = model.flops((3, 8, 8), 4)
    joined = model.flops((2, 8, 8), 4, extra_frames=1)
    assert joined == pytest.approx(in_place, rel=0.02)


def test_a_training_step_costs_three_forward_passes_per_sample():
    assert flops.train_step_flops(7.0, batch_size=4) == 84


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("TPU v5", 459e12),
        ("TPU v5 lite", 197e12),
        ("cpu", None),
    ],
)
def test_peaks_are_found_by_the_longest_match_of_the_device_kind(kind, peak):
    assert flops.peak_flops(kind) == peak
