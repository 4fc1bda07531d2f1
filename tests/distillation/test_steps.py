"""Every method as a training step: on a mesh as on one device, and after an interruption as without."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import build
from nova_jax.training import checkpoint, step
from tests.distillation import students, toy_students
from tests.training import toy

STEPS = 5


def train(made, mesh=None, steps=STEPS, state=None, first=0):
    state = step.build(made.make_state, *made.arguments, mesh=mesh) if state is None else state
    losses = []
    for number in range(first, steps):
        batch = toy_students.rows(number * toy.BATCH)
        if mesh is not None:
            batch = distributed.global_batch(batch, meshes.batch_sharding(mesh), toy.BATCH)
        state, metrics = made.train_step(state, batch)
        assert bool(metrics["finite"])
        losses.append(float(metrics["loss"]))
    return losses, state


QUICK = ("shortcut", "mean_flow", "dmd2")  # one of each kind; the others take a minute more


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in students.METHODS]
)
def test_a_method_trains_on_a_mesh_like_on_one_device(name):
    expected, _ = train(toy_students.make_recipe(name))
    for sizes in ({"data": 1, "fsdp": 4, "tensor": 2}, {"data": 8}):
        mesh = meshes.MeshConfig(**sizes).make()
        with jax.set_mesh(mesh):
            made = toy_students.make_recipe(name)
            losses, state = train(made, mesh)
        np.testing.assert_allclose(losses, expected, rtol=1e-5, err_msg=str(sizes))
        assert made.train_step._cache_size() == 1, "one program serves every step"
        teacher = state.extra.get("teacher")
        if teacher is not None and sizes.get("fsdp"):
            kernel = teacher["blocks"]["mlp"]["up"]["kernel"]
            assert kernel.addressable_shards[0].data.size * sizes["fsdp"] * sizes["tensor"] == kernel.size


@pytest.mark.long
@pytest.mark.parametrize("name", ["progressive", "mean_flow", "dmd2"])
def test_a_method_resumes_to_the_bit_with_all_it_remembers(name, tmp_path):
    mesh = meshes.MeshConfig(data=1, fsdp=4, tensor=2).make()
    with jax.set_mesh(mesh):
        made = toy_students.make_recipe(name)
        straight, expected = train(made, mesh)
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            first, state = train(made, mesh, steps=3)
            checkpoints.save(3, state, {"position": 3 * toy.BATCH})
        with checkpoint.Checkpoints(tmp_path) as checkpoints:
            restored = checkpoints.restore(step.plan(made.make_state, *made.arguments, mesh=mesh))
        assert restored is not None
        rest, state = train(made, mesh, state=restored.state, first=3)
    assert first + rest == straight
    jax.tree.map(np.testing.assert_array_equal, state, expected)


@pytest.mark.long
def test_the_teacher_stays_and_has_no_optimizer_state():
    made = toy_students.make_recipe("dmd2")
    _, state = train(made, steps=2)
    jax.tree.map(np.testing.assert_array_equal, state.extra["teacher"], made.arguments[0])
    size = sum(leaf.size for leaf in jax.tree.leaves(made.arguments[0]))
    moments = sum(leaf.size for leaf in jax.tree.leaves(state.extra["critic_opt_state"]))
    assert moments < 2.1 * size, "two moments of the critic, none of the teacher"


def test_the_critic_is_updated_more_often_than_the_student():
    made = toy_students.make_recipe("dmd2")
    _, state = train(made, steps=3)
    counts = [int(leaf) for leaf in jax.tree.leaves(state.extra["critic_opt_state"]) if leaf.dtype == jnp.int32]
    assert set(counts) == {3 * students.METHODS["dmd2"].critic_updates}


@pytest.mark.long
def test_a_progressive_student_learns_from_its_average_at_the_end_of_each_stage():
    made = toy_students.make_recipe("progressive")
    length = students.METHODS["progressive"].stage_length
    _, state = train(made, steps=length)
    ended = jax.device_get(state)
    jax.tree.map(np.testing.assert_array_equal, ended.extra["previous"], made.arguments[0])
    for later in (length, length + 1):
        _, state = train(made, state=state, first=later, steps=later + 1)
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(state).extra["previous"], ended.ema)


@pytest.mark.long
def test_a_discriminator_on_the_teachers_tokens_is_trained_and_judges_the_student():
    """On the real DiT: it starts undecided, learns, and its judgement is part of the student's loss."""
    method = dataclasses.replace(students.METHODS["dmd2"], discriminator_layers=1, adversarial_scale=100.0)
    model = students.make_model(has_second_time=True)
    made = build.distilled(
        model, method, students.OPTIMIZER, students.rows(0, 1), students.make_teacher(), seed=0, ema_decay=0.9
    )
    state = step.build(made.make_state, *made.arguments)
    assert not np.any(state.extra["critic"]["head"]["head"]["kernel"])
    state, metrics = made.train_step(state, students.rows(0))
    assert bool(metrics["finite"])
    assert np.any(state.extra["critic"]["head"]["head"]["kernel"])
    assert abs(float(metrics["adversarial"]) - np.log(2)) < 0.1, "two updates of the critic leave it near undecided"
    assert float(metrics["loss"]) > 100 * 0.9 * float(metrics["adversarial"])


def test_a_discriminator_needs_layers_that_the_teacher_has():
    with pytest.raises(ValueError, match="discriminator_layers=3: the teacher has layers 1 to 2"):
        build.make_judge(students.make_model(), 3)
