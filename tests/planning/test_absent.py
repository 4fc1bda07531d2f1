"""Programs for devices that are not here, where their compilers are installed."""

import importlib.util

import pytest

from nova_jax.planning import hardware, plan, programs

pytestmark = pytest.mark.long
SMALL = ("model.width=256", "batch_size=8", "data.latent_shape=(1,16,16,16)", "model.remat=none")


def measure(target, attention, mesh):
    config = programs.find("nano", [*SMALL, f"model.attention_implementation={attention}"])
    found = plan.make(config, hardware.find(target), [plan.read_mesh(mesh)])
    return found, found.rows[0].costs


@pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="no compiler for NVIDIA GPUs")
def test_a_step_for_eight_h200s_holds_flash_attention_and_the_products_of_the_model():
    found, costs = measure("h200:8", "cudnn", "fsdp=8")
    assert costs.kernels["attention"] == 4 * 2 * 2  # self and cross, forwards and backwards
    assert costs.kernels["exchange"] > 0
    assert costs.sent["fsdp"] > 2 * 4 * found.parameters * 7 / 8
    assert 8 * costs.flops == pytest.approx(found.model_flops, rel=0.1)
    assert found.rows[0].fits


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no compiler for TPUs")
def test_a_step_for_four_tpus_holds_the_products_of_the_model():
    found, costs = measure("v5e:2x2", "xla", "fsdp=4")
    assert 4 * costs.flops == pytest.approx(found.model_flops, rel=0.1)
    assert costs.sent["fsdp"] > 2 * 4 * found.parameters * 3 / 4
    assert found.rows[0].fits
