"""Seconds of kernels and exchanges, by hand."""

import pytest

from nova_jax.parallel import collectives
from nova_jax.planning import hardware, program, roofline

CHIP = hardware.Chip(flops=1e12, memory=10**9, bandwidth=1e9, link=1e8, machine=4, network=1e6, launch=1e-6)


def kernel(name, kind, op="fusion", read=0, written=0, flops=0, times=1, keys=0):
    return program.Kernel(name, op, kind, read, written, flops, times, "", keys)


def test_a_kernel_is_held_back_by_the_largest_of_its_terms():
    kernels = [
        kernel("a", "product", read=8, flops=int(1e9), times=3),
        kernel("b", "other", read=600_000, written=250_000),
        kernel("c", "other", read=8, times=10),
        kernel("d", "exchange", read=10**9),
    ]
    line = roofline.of_kernels(kernels, CHIP, network=0.5)
    assert line == pytest.approx((3 * 1e9 / 0.75e12, 1e-3, 1e-5, 0.5))
    assert line.limit == "network"
    assert line.mfu(1e9, CHIP) == pytest.approx(1e9 / line.seconds / 1e12)


def test_attention_attains_what_was_read_of_it_on_an_h100():
    h200 = hardware.CHIPS["h200"]
    for keys, forward in ((512, 528), (4096, 679), (16384, 697)):  # TF/s, heads of 128
        flops = 4 * keys**2 * 128
        seconds = roofline.kernel_seconds(kernel("a", "attention", flops=flops, keys=keys), h200)["compute"]
        assert flops / seconds / 1e12 == pytest.approx(forward, rel=0.03)
    backward = kernel("a", "attention", "__cudnn$fmhaSoftmaxBackward", flops=10**12, keys=16384)
    assert 1 / roofline.kernel_seconds(backward, h200)["compute"] == pytest.approx(518, rel=0.03)


def test_links_inside_a_machine_are_fast_and_those_between_machines_are_not():
    sizes = {"data": 2, "fsdp": 2, "context": 2, "tensor": 1}
    assert roofline.speed(("context",), sizes, CHIP) == CHIP.link
    assert roofline.speed(("fsdp", "context"), sizes, CHIP) == CHIP.link
    assert roofline.speed(("data",), sizes, CHIP) == CHIP.network
    assert roofline.speed(("data", "context"), sizes, CHIP) == CHIP.network
    tpu = hardware.CHIPS["v5p"]
    assert roofline.speed(("data",), sizes, tpu) == tpu.link


ASYNC = """
ENTRY %main (x: f32[1000000]) -> f32[1000000] {
  %x = f32[1000000]{0} parameter(0)
  %start = (f32[1000000]{0}, f32[2000000]{0}) all-gather-start(%x), replica_groups=[1,2]<=[2], dimensions={0}
  %busy = f32[1000000]{0} negate(%x)
  %done = f32[2000000]{0} all-gather-done(%start)
  ROOT %sum = f32[1000000]{0} all-reduce(%busy), replica_groups=[1,2]<=[2], to_apply=%add
}
"""


def test_kernels_between_start_and_end_hide_an_exchange():
    sizes = {"data": 2, "fsdp": 1, "context": 1, "tensor": 1}
    kernels = program.read(ASYNC)
    gathered, summed = collectives.gather(8e6, 2) / CHIP.link, collectives.reduce(4e6, 2) / CHIP.link
    between = 8e6 / (roofline.MEMORY * CHIP.bandwidth)
    assert roofline.exposed_seconds(ASYNC, kernels, sizes, CHIP) == pytest.approx(gathered - between + summed)
