"""Which rows a process loads, and how processes are found and stopped; real ones run in tests/training."""

import os
import signal

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes


class FakeSharding:
    """The rows that the devices of one process hold, as a sharding over many processes would say."""

    def __init__(self, *rows):
        self.rows = rows

    def addressable_devices_indices_map(self, shape):
        return {device: (slice(*rows) if rows else slice(None),) for device, rows in enumerate(self.rows)}


def shard(*rows, batch_size=8):
    function = getattr(distributed.data_shard, "__wrapped__", distributed.data_shard)
    return function(FakeSharding(*rows), batch_size)


def test_one_process_loads_the_whole_batch():
    sharding = meshes.batch_sharding(meshes.MeshConfig(fsdp=2, tensor=2).make())
    assert distributed.data_shard(sharding, 8) == (0, 1)


def test_a_batch_that_is_not_cut_is_loaded_whole():
    sharding = NamedSharding(meshes.MeshConfig(tensor=8).make(), P())
    assert distributed.data_shard(sharding, 3) == (0, 1)


def test_each_process_loads_its_own_rows():
    assert shard((0, 2), (2, 4)) == (0, 2)
    assert shard((4, 6), (6, 8)) == (1, 2)


def test_processes_that_share_rows_get_the_same_index():
    # tensor over processes: two processes hold rows 4..8 each
    assert shard((4, 8), (4, 8)) == (1, 2)


def test_rows_with_a_hole_are_refused():
    with pytest.raises(ValueError, match="let the data and fsdp axes be the outer ones"):
        shard((0, 2), (4, 6))


def test_a_global_batch_keeps_its_rows_in_order():
    sharding = meshes.batch_sharding(meshes.MeshConfig(fsdp=4).make())
    rows = {"x": np.arange(16.0).reshape(8, 2), "none": None}
    batch = distributed.global_batch(rows, sharding, 8)
    np.testing.assert_array_equal(batch["x"], rows["x"])
    assert batch["x"].sharding == sharding
    assert batch["none"] is None
    with pytest.raises(ValueError, match="global_shape"):
        distributed.global_batch({"x": rows["x"][:4]}, sharding, 8)


def test_half_an_address_is_refused(monkeypatch):
    for name in distributed.EXPLICIT:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ValueError, match="also needs NOVA_NUM_PROCESSES, NOVA_PROCESS_ID"):
        distributed.initialize("localhost:1234")


@pytest.mark.parametrize("given", [("host", 2, 0), ("host:x", 2, 0), ("host:1", 2, 2), ("host:1", 0, 0)])
def test_an_address_or_a_number_that_fits_no_job_is_refused(given):
    with pytest.raises(ValueError, match=r"NOVA_COORDINATOR=host\S* NOVA_NUM_PROCESSES=\d NOVA_PROCESS_ID=\d: give"):
        distributed.initialize(*given)


def test_what_processes_tell_each_other_is_what_a_lonely_one_says():
    assert distributed.process_place() == (0, 1)
    assert distributed.gather("test", "text") == ["text"]
    distributed.barrier("test")


def test_a_lonely_process_does_not_wait_for_others(monkeypatch):
    for name in (*distributed.EXPLICIT, "NOVA_DISTRIBUTED", "SLURM_STEP_NUM_TASKS", "TPU_WORKER_HOSTNAMES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    distributed.initialize()
    assert jax.process_count() == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("NOVA_DISTRIBUTED", "auto"), ("SLURM_STEP_NUM_TASKS", "4"), ("TPU_WORKER_HOSTNAMES", "10.0.0.1,10.0.0.2")],
)
def test_a_cluster_is_left_to_jax(monkeypatch, name, value):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    monkeypatch.setenv(name, value)
    distributed.initialize(heartbeat_seconds=7, join_seconds=8)
    assert calls == [{"heartbeat_timeout_seconds": 7, "initialization_timeout": 8}]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_becomes_an_answer_between_steps(number):
    before = signal.getsignal(number)
    with distributed.graceful_stop() as should_stop:
        assert not should_stop(1)
        os.kill(os.getpid(), number)
        assert should_stop(2)
    assert signal.getsignal(number) is before


def test_only_explicit_addresses_on_loopback_stay_on_loopback(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **options: calls.append(options))
    distributed.initialize("localhost:1234", 2, 0)
    distributed.initialize("10.0.0.1:1234", 2, 0)
    assert [call["coordinator_bind_address"] for call in calls] == ["localhost:1234", None]


def test_joining_twice_changes_nothing_but_not_as_another_process(monkeypatch):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **options: calls.append(options))
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    distributed.initialize("localhost:1234", 1, 0)
    monkeypatch.setenv("NOVA_DISTRIBUTED", "auto")
    distributed.initialize()
    assert not calls
    with pytest.raises(ValueError, match="process 1 of 2 has joined already, as 0 of 1"):
        distributed.initialize("localhost:1234", 2, 1)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unable to initialize backend 'tpu'")])
def test_a_platform_without_devices_is_one_sentence(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(jax, "devices", fail)
    with pytest.raises(
        distributed.NoDevice, match=rf"JAX finds no device of JAX_PLATFORMS=.*{error}.*JAX_PLATFORMS=cpu"
    ):
        distributed.check_devices()
