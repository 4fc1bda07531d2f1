import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nova_jax.sampling import noise

SHAPE = (1, 5, 3, 3)


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_a_seed_gives_the_same_noise_in_a_batch_of_any_size(batch_size):
    whole = noise.initial_noise(jnp.arange(8), SHAPE)
    part = noise.initial_noise(jnp.arange(batch_size), SHAPE)
    np.testing.assert_array_equal(part, whole[:batch_size])
    np.testing.assert_array_equal(noise.initial_noise([5], SHAPE)[0], whole[5])


@pytest.mark.parametrize("mesh_shape", [(8, 1), (4, 2), (2, 4), (1, 8)])
def test_a_seed_gives_the_same_noise_on_any_mesh(mesh_shape):
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(mesh_shape), ("data", "context"), axis_types=(AxisType.Auto,) * 2)
    shape = (1, 8, 3, 3)
    sharding = NamedSharding(mesh, PartitionSpec("data", None, "context"))
    make = jax.jit(lambda seeds: noise.initial_noise(seeds, shape), out_shardings=sharding)
    alone = jax.jit(lambda seeds: noise.initial_noise(seeds, shape))
    np.testing.assert_array_equal(make(jnp.arange(8)), alone(jnp.arange(8)))


def test_noise_is_standard_normal_and_differs_between_samples():
    rows = noise.initial_noise(jnp.arange(4), (10_000,))
    assert abs(float(rows.mean())) < 4 / np.sqrt(rows.size)
    assert abs(float(rows.var()) - 1) < 4 * np.sqrt(2 / rows.size)
    assert np.abs(np.corrcoef(rows) - np.eye(4)).max() < 4 / np.sqrt(10_000)


def test_step_noise_is_independent_of_the_initial_noise_of_the_same_seed():
    keys = noise.keys_from_seeds([0])
    step = noise.normal(noise.fold_in(keys, 1), (10_000,))
    start = noise.initial_noise([0], (10_000,))
    assert abs(float(jnp.mean(step * start))) < 4 / np.sqrt(10_000)


def test_one_key_is_turned_into_one_per_sample_and_a_row_of_keys_is_kept():
    key = jax.random.key(0)
    keys = noise.keys_for_batch(key, 3)
    assert keys.shape == (3,)
    assert jnp.all(noise.keys_for_batch(keys, 3) == keys)
    with pytest.raises(ValueError, match="one per sample"):
        noise.keys_for_batch(keys, 2)
