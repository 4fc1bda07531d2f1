"""Meshes: sizes that fit, and errors that say which would."""

import jax
import pytest
from jax.sharding import AxisType, PartitionSpec

from nova_jax.parallel import mesh as meshes


def test_minus_one_takes_the_devices_that_are_left():
    assert meshes.MeshConfig(fsdp=2, tensor=2).sizes(8) == (2, 2, 1, 2)
    assert meshes.MeshConfig(data=1, fsdp=-1).sizes(8) == (1, 8, 1, 1)


def test_a_mesh_has_the_four_axes_all_auto():
    mesh = meshes.MeshConfig(fsdp=2, context=2).make()
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "context": 2, "tensor": 1}
    assert set(mesh.axis_types) == {AxisType.Auto}


def test_a_mesh_can_use_some_of_the_devices():
    assert meshes.MeshConfig(fsdp=2).make(jax.devices()[:4]).devices.size == 4


def test_a_mesh_larger_than_the_machine_is_refused():
    with pytest.raises(ValueError, match="needs at least 16 devices, but there are 8"):
        meshes.MeshConfig(fsdp=4, tensor=4).make()


def test_sizes_that_do_not_divide_name_those_that_do():
    with pytest.raises(ValueError, match=r"3 does not divide 8 devices; .* \[1, 2, 4, 8\]"):
        meshes.MeshConfig(tensor=3).make()


def test_devices_are_not_left_idle_in_silence():
    with pytest.raises(ValueError, match="does not use all of 8 devices"):
        meshes.MeshConfig(data=2, fsdp=2).make()


@pytest.mark.parametrize("sizes", [{"fsdp": 0}, {"data": -2}, {"data": -1, "fsdp": -1}])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="at most one of them is -1"):
        meshes.MeshConfig(**sizes)


def test_a_batch_that_does_not_divide_is_told_the_nearest_sizes_that_do():
    mesh = meshes.MeshConfig(data=2, fsdp=2, tensor=2).make()
    meshes.check_batch_size(mesh, 12)
    with pytest.raises(ValueError, match=r"batch_size 10 .* data x fsdp = 2 x 2: use 8 or 12 \(a multiple of 4\)"):
        meshes.check_batch_size(mesh, 10)
    with pytest.raises(ValueError, match=r"with 2 accumulated parts: use 8 or 16 \(a multiple of 8\)"):
        meshes.check_batch_size(mesh, 12, accumulate=2)
    with pytest.raises(ValueError, match="use 4 "):
        meshes.check_batch_size(mesh, 1)


def test_samples_are_cut_over_data_and_fsdp():
    assert meshes.batch_sharding(meshes.MeshConfig(fsdp=2).make()).spec == PartitionSpec(("data", "fsdp"))


def test_axes_that_do_not_divide_are_dropped_from_the_right():
    sizes = {"data": 2, "fsdp": 4, "tensor": 1}
    assert meshes.fitting_axes(8, ("data", "fsdp"), sizes) == ("data", "fsdp")
    assert meshes.fitting_axes(4, ("data", "fsdp"), sizes) == ("data",)
    assert meshes.fitting_axes(3, ("data", "fsdp"), sizes) is None
    assert meshes.fitting_axes(8, ("tensor", "absent"), sizes) is None
