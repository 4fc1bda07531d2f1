"""Data on the devices is the same stream as data on the host."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines import datasets
from data_pipelines.scenes import source
from data_pipelines.sources import memory
from nova_jax import config as configs
from nova_jax import experiment
from nova_jax.diffusion import Reconstruction
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import resident
from nova_jax.training import loop
from nova_jax.training.optimizer import AdamW
from tests import tiny_run
from tests.training.test_logging import lines
from tests.training.test_loop import STATE, counting_step, numbers, run


@pytest.mark.parametrize("axes", [{"data": 1}, {"data": 4, "fsdp": 2}, {"data": 2, "context": 4}])
def test_rows_are_found_wherever_they_lie(axes):
    table = {"x": np.arange(22.0, dtype=np.float32).reshape(11, 2), "mask": np.arange(11) % 3 == 0}
    mesh = meshes.MeshConfig(**axes).make(jax.devices()[: np.prod(list(axes.values()))])
    placed = resident.place(table, mesh)
    rows = jnp.array([10, 0, 3, 3, 7, 8, 1, 9])
    with jax.set_mesh(mesh):
        found = jax.jit(resident.pick)(placed, rows)
    for name, array in table.items():
        np.testing.assert_array_equal(found[name], array[rows])
        assert placed[name].dtype == found[name].dtype == array.dtype
        ways = axes.get("data", 1) * axes.get("fsdp", 1)
        assert placed[name].addressable_shards[0].data.shape[0] == -(-11 // ways)


def test_a_dispatch_of_several_steps_logs_and_saves_after_its_last(tmp_path):
    def several(state, batches):
        return jax.lax.scan(counting_step, state, batches)

    def stacked(position):
        stream = numbers(position)
        while True:
            yield jnp.stack([next(stream) for _ in range(3)])

    calls = []
    callback = loop.Callback(every=4, run=lambda step, state: calls.append(step))
    options = {"steps": 12, "log_every": 2, "checkpoint_every": 5, "callbacks": [callback]}
    state = run(tmp_path / "three", train_step=several, batches=stacked, steps_per_dispatch=3, **options)
    one = run(tmp_path / "one", **options | {"log_every": 3})
    assert float(state.params["w"]) == float(one.params["w"])
    assert calls[:3] == [6, 9, 12]
    three, single = ({line["step"]: line["loss_bits"] for line in lines(tmp_path / name)} for name in ("three", "one"))
    assert three == single
    with pytest.raises(ValueError, match="steps_per_dispatch=3 must divide the 2 steps that are left"):
        run(tmp_path / "two", steps=2, steps_per_dispatch=3)


def test_a_loss_of_an_inner_step_that_is_not_finite_is_named(tmp_path):
    def several(state, batches):
        return jax.lax.scan(counting_step, state, batches)

    with pytest.raises(loop.NonFiniteLoss, match="step 5: loss nan"):
        run(
            tmp_path,
            train_step=several,
            batches=lambda position: iter([jnp.ones(3), jnp.array([1.0, jnp.nan, 1.0])]),
            steps_per_dispatch=3,
            state=STATE,
        )


def losses(config):
    return [line["loss_bits"] for line in lines(experiment.run(config).directory)]


@pytest.mark.long
def test_losses_are_equal_to_the_bit_and_a_run_resumes_from_either(tmp_path):
    config = dataclasses.replace(tiny_run.make_config(tmp_path), steps=6, preview=None)
    named = functools.partial(dataclasses.replace, config)
    host = losses(named(run_dir=str(tmp_path / "host")))
    assert losses(named(run_dir=str(tmp_path / "device"), data_on_device=True)) == host
    losses(named(run_dir=str(tmp_path / "parts"), steps=2, optimizer=config.optimizer.ending_at(6)))
    parts = named(run_dir=str(tmp_path / "parts"), data_on_device=True, optimizer=config.optimizer.ending_at(6))
    assert losses(parts) == host
    two = named(run_dir=str(tmp_path / "two"), data_on_device=True, steps_per_dispatch=2)
    values = [line["loss"] for line in lines(experiment.run(two).directory)]
    expected = [line["loss"] for line in lines(tmp_path / "host")][1::2]
    np.testing.assert_allclose(values, expected, rtol=1e-5)


@pytest.mark.long
def test_losses_on_a_mesh_are_those_of_the_host(tmp_path):
    mesh = meshes.MeshConfig(data=4, fsdp=2)
    config = dataclasses.replace(tiny_run.make_config(tmp_path), preview=None, mesh=mesh)
    host = losses(dataclasses.replace(config, run_dir=str(tmp_path / "host")))
    assert losses(dataclasses.replace(config, run_dir=str(tmp_path / "device"), data_on_device=True)) == host


@pytest.mark.long
def test_images_in_memory_train_an_autoencoder_from_the_devices(tmp_path):
    images = memory.InMemory(source.Scenes(length=16))
    config = experiment.TrainConfig(
        name="pixels", model=tiny_run.TINY_VAE, objective=Reconstruction(), data=datasets.Pixels(source=images),
        optimizer=AdamW(peak=1e-3, warmup=2), steps=3, batch_size=8, log_every=1,
    )  # fmt: skip
    host = losses(dataclasses.replace(config, run_dir=str(tmp_path / "host")))
    assert losses(dataclasses.replace(config, run_dir=str(tmp_path / "device"), data_on_device=True)) == host


def test_data_that_is_made_on_the_host_is_refused(tmp_path):
    config = tiny_run.make_config(tmp_path)
    data = dataclasses.replace(config.data, in_memory=False)
    with pytest.raises(configs.ConfigError, match="batches of this CaptionedLatents are made on the host"):
        experiment.run(dataclasses.replace(config, data=data, data_on_device=True, preview=None))
    with pytest.raises(ValueError, match="needs data_on_device=True"):
        dataclasses.replace(config, steps_per_dispatch=2)
