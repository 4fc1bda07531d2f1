"""A grown network answers as the one it grew from, to the bit, or is refused."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import sampling
from nova_jax.diffusion import denoiser, schedules
from nova_jax.models import growth
from tests.distillation import students


def at(batch, t=0.7):
    return jnp.asarray(batch.x0), jnp.full(students.BATCH, t), jax.tree.map(jnp.asarray, batch.cond)


@pytest.mark.long
@pytest.mark.parametrize("r", [None, 0.7, 0.0])
def test_a_grown_student_answers_as_its_teacher_to_the_bit(r):
    teacher = students.make_teacher()
    model = students.make_model(has_second_time=True)
    x, t, cond = at(students.rows(3))
    fresh = jax.jit(model.init)(jax.random.key(5), x, t, cond)["params"]
    params = growth.grow(fresh, teacher.params)
    shown = cond if r is None else cond._replace(r=jnp.full(students.BATCH, r))
    answer = jax.jit(model.apply)({"params": params}, x, t, shown)
    np.testing.assert_array_equal(answer, jax.jit(teacher.network.apply)({"params": teacher.params}, x, t, cond))


EDITING = {
    "aligned_channels": 6,
    "num_frame_roles": 1,
    "has_palette": True,
    "num_tasks": 4,
    "has_absolute_positions": True,
}


@pytest.mark.long
def test_a_text_to_image_model_grown_into_an_editing_one_draws_the_same_pictures_to_the_bit():
    old = students.make_teacher()
    model = students.make_model(**EDITING)
    x, t, cond = at(students.rows(3))
    params = growth.grow(jax.jit(model.init)(jax.random.key(5), x, t, cond)["params"], old.params)

    @functools.partial(jax.jit, static_argnums=0)
    def draw(network, params):
        denoise = denoiser.make_denoiser(
            lambda p, x, t, cond: network.apply({"params": p}, x, t, cond),
            params,
            schedules.RectifiedFlow(),
            "velocity",
        )
        return sampling.sample(
            denoise,
            x,
            sampler=sampling.Euler(),
            times=sampling.time_grids.uniform(4),
            schedule=schedules.RectifiedFlow(),
            cond=cond,
        ).x

    np.testing.assert_array_equal(draw(model, params), draw(old.network, old.params))


@pytest.mark.long
def test_aligned_channels_and_a_masked_palette_change_nothing_at_the_start():
    model = students.make_model(**EDITING)
    x, t, cond = at(students.rows(3))
    params = growth.grow(jax.jit(model.init)(jax.random.key(5), x, t, cond)["params"], students.make_teacher().params)
    shown = cond._replace(
        aligned=jax.random.normal(jax.random.key(1), (*x.shape[:4], 6)),
        palette=jax.random.normal(jax.random.key(2), (students.BATCH, 3, 3)),
        palette_mask=jnp.zeros((students.BATCH, 3), bool),
    )
    apply = jax.jit(model.apply)
    np.testing.assert_allclose(apply({"params": params}, x, t, shown), apply({"params": params}, x, t, cond), atol=1e-6)


def test_growing_names_every_array_that_does_not_fit():
    teacher = students.make_teacher()
    x, t, cond = at(students.rows(0))
    model = dataclasses.replace(students.make_model(), width=64, depth=3)
    fresh = jax.eval_shape(model.init, jax.random.key(0), x, t, cond)["params"]
    with pytest.raises(
        ValueError, match=r"blocks/mlp/up/kernel has shape \(3, 64, 256\), in the trained network \(2, 32, 128\)"
    ):
        growth.grow(fresh, teacher.params)
    without_head = {name: part for name, part in teacher.params.items() if name != "head"}
    with pytest.raises(ValueError, match="head/kernel of the trained network is not in the new one"):
        growth.grow(without_head, teacher.params)
    with pytest.raises(ValueError, match="head/kernel is not in the trained network"):
        growth.grow(teacher.params, without_head)
