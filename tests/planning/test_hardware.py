"""Targets by name, and devices that are not there."""

import importlib.util

import jax
import pytest

from nova_jax.planning import hardware


@pytest.mark.parametrize(
    ("name", "platform", "count"),
    [("h200:8", "cuda", 8), ("h200:256", "cuda", 256), ("v5e:2x4", "tpu", 8), ("v5p:8x8x4", "tpu", 256)],
)
def test_a_target_is_a_chip_and_a_shape(name, platform, count):
    target = hardware.find(name)
    assert (target.platform, target.count, target.name) == (platform, count, name)
    assert target.chip == hardware.CHIPS[target.chip_name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h300:8", "unknown target 'h300:8': use here, or one of h200, v5e"),
        ("h200", "h200 takes 1 number, as in h200:8"),
        ("h200:2x4", "h200 takes 1 number"),
        ("v5e:8", "v5e takes 2 numbers, as in v5e:2x4"),
        ("v5p:2x4", "v5p takes 3 numbers"),
        ("v5e:0x4", "v5e takes 2 numbers"),
        ("h200:12", "a multiple of 8"),
    ],
)
def test_other_targets_are_refused_with_what_is_allowed(name, message):
    with pytest.raises(ValueError, match=message):
        hardware.find(name)


def test_here_is_this_machine_with_measured_limits():
    target = hardware.find("here")
    assert (target.platform, target.count) == (jax.default_backend(), jax.device_count())
    assert list(hardware.devices(target)) == jax.devices()
    assert target.chip.flops > 1e8
    assert target.chip.memory > 2**28
    assert target.chip.bandwidth > 1e7


@pytest.mark.parametrize("name", ["h200:8", "v5e:2x4"])
def test_a_missing_compiler_is_named_with_what_installs_it(name, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=rf"the compiler for {name} is missing: pip install .*=={jax.__version__}"):
        hardware.devices(hardware.find(name))
