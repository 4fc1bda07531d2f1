import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from nova_jax.diffusion import DropRates, conditioning
from nova_jax.types import Conditioning


def full(batch_size=4):
    return Conditioning(
        text=jnp.ones((batch_size, 6, 3)),
        text_ids=jnp.full((batch_size, 6), 7),
        text_mask=jnp.ones((batch_size, 6), bool),
        pooled=jnp.ones((batch_size, 5)),
        aligned=jnp.ones((batch_size, 1, 2, 2, 3)),
        frames=jnp.ones((batch_size, 2, 2, 2, 3)),
        frame_roles=jnp.ones((batch_size, 2), int),
        frame_times=jnp.zeros((batch_size, 2)),
        palette=jnp.ones((batch_size, 2, 3)),
        palette_mask=jnp.ones((batch_size, 2), bool),
        task=jnp.full(batch_size, 3),
        r=jnp.full(batch_size, 0.5),
        guidance_scale=jnp.full(batch_size, 4.0),
    )


def test_the_null_caption_is_all_zeros_seen_through_its_first_token():
    null = conditioning.null(full())
    for field in ("text", "text_ids", "pooled", "aligned", "frames", "palette", "palette_mask"):
        assert not getattr(null, field).any(), field
    np.testing.assert_array_equal(null.text_mask, np.arange(6)[None] == np.zeros((4, 1)))
    np.testing.assert_array_equal(null.frame_times, 1.0)


def test_what_is_no_condition_stays_in_the_null_condition():
    cond, null = full(), conditioning.null(full())
    for field in ("frame_roles", "r", "guidance_scale", "task"):
        np.testing.assert_array_equal(getattr(null, field), getattr(cond, field))


def test_masks_of_ones_and_zeros_become_booleans():
    cond = full()
    whole = cond._replace(text_mask=cond.text_mask.astype(int), palette_mask=cond.palette_mask.astype(int))
    jax.tree.map(np.testing.assert_array_equal, conditioning.null(whole), conditioning.null(cond))
    assert conditioning.explicit(whole).text_mask.dtype == conditioning.explicit(whole).palette_mask.dtype == bool
    with pytest.raises(TypeError, match="a mask of float32"):
        conditioning.explicit(cond._replace(text_mask=cond.text_mask.astype(float)))


def test_only_the_named_parts_are_left_out():
    null = conditioning.null(full(), parts=("text",))
    assert not null.text.any()
    assert null.aligned.all()
    with pytest.raises(ValueError, match="text, pooled, aligned, frames, palette"):
        conditioning.null(full(), parts=("caption",))


def test_absent_parts_stay_absent_and_what_missing_ones_mean_becomes_explicit():
    assert conditioning.null(Conditioning()) == Conditioning()
    null = conditioning.null(Conditioning(text=jnp.ones((2, 3, 4))))
    np.testing.assert_array_equal(null.text_mask, [[True, False, False]] * 2)
    assert null.pooled is None
    ids = jnp.array([[7, 8, 0]])
    np.testing.assert_array_equal(conditioning.explicit(Conditioning(text_ids=ids)).text_mask, ids != 0)
    frames = Conditioning(frames=jnp.ones((1, 2, 4, 4, 3)))
    np.testing.assert_array_equal(conditioning.explicit(frames).frame_times, [[0.0, 0.0]])
    np.testing.assert_array_equal(conditioning.null(frames).frame_times, [[1.0, 1.0]])
    colors = conditioning.explicit(Conditioning(palette=jnp.ones((1, 2, 3))))
    np.testing.assert_array_equal(colors.palette_mask, [[True, True]])


def test_null_of_something_else_is_refused():
    with pytest.raises(TypeError):
        conditioning.null(jnp.ones(3))


def test_each_part_is_dropped_at_its_rate_and_independently_of_the_others():
    count, rates = 20_000, DropRates(text=0.1, pooled=0.3, aligned=0.5, frames=0.0)
    cond = Conditioning(
        text_ids=jnp.ones((count, 2), int),
        pooled=jnp.ones((count, 1)),
        aligned=jnp.ones((count, 1, 1, 1, 1)),
        frames=jnp.ones((count, 1, 1, 1, 1)),
        frame_times=jnp.zeros((count, 1)),
    )
    dropped = conditioning.drop(cond, jax.random.key(0), rates)
    gone = {
        "text": ~dropped.text_mask[:, 1],
        "pooled": dropped.pooled[:, 0] == 0,
        "aligned": dropped.aligned.reshape(count) == 0,
        "frames": dropped.frame_times[:, 0] == 1,
    }
    np.testing.assert_array_equal(gone["text"], dropped.text_ids.sum(1) == 0)
    for part, is_gone in gone.items():
        rate = getattr(rates, part)
        assert abs(is_gone.mean() - rate) <= 4 * np.sqrt(rate * (1 - rate) / count), part
    both = (gone["text"] & gone["aligned"]).mean()
    assert abs(both - 0.05) < 4 * np.sqrt(0.05 * 0.95 / count)


def test_dropping_depends_on_the_key_and_not_on_the_sharding():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    cond, rates = full(16), DropRates(text=0.5, aligned=0.5)
    drop = jax.jit(lambda cond, key: conditioning.drop(cond, key, rates))
    alone, sharded = (drop(c, jax.random.key(3)) for c in (cond, jax.device_put(cond, rows)))
    jax.tree.map(np.testing.assert_array_equal, alone, sharded)
    assert not jnp.array_equal(drop(cond, jax.random.key(4)).text, alone.text)


def test_rate_one_drops_everything_and_rate_zero_nothing():
    everything = DropRates(text=1.0, pooled=1.0, aligned=1.0, frames=1.0, palette=1.0)
    dropped = conditioning.drop(full(), jax.random.key(0), everything)
    jax.tree.map(np.testing.assert_array_equal, dropped, conditioning.null(full()))
    kept = conditioning.drop(full(), jax.random.key(0), DropRates(text=0.0, pooled=0.0))
    jax.tree.map(np.testing.assert_array_equal, kept, full())
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        DropRates(text=1.5)


def test_split_undoes_interleave_and_rows_of_one_sample_stay_together():
    a, b = full(3), conditioning.null(full(3))
    both = conditioning.interleave(a, b)
    np.testing.assert_array_equal(both.pooled[:, 0], [1, 0, 1, 0, 1, 0])
    for tree, again in zip((a, b), conditioning.split(both, 2), strict=True):
        jax.tree.map(np.testing.assert_array_equal, tree, again)


def test_interleaving_moves_no_row_to_another_device():
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    x = jax.device_put(jnp.arange(16.0), rows)
    there_and_back = jax.jit(
        lambda a, b: conditioning.split(2 * conditioning.interleave(a, b), 2)[1], out_shardings=rows
    )
    program = there_and_back.lower(x, x).compile().as_text()
    assert not any(word in program for word in ("all-to-all", "all-gather", "collective-permute", "all-reduce"))


def test_conditions_that_hold_different_parts_do_not_stack():
    with pytest.raises(ValueError, match="same parts"):
        conditioning.interleave(Conditioning(pooled=jnp.ones((2, 1))), Conditioning())
