"""Where a student starts: equal to its teacher to the bit, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nova_jax import config, distillation
from nova_jax.diffusion import DenoisingObjective, FlowMatching, Reconstruction, conditioning, schedules
from nova_jax.distillation import teacher as teachers
from nova_jax.runs import build
from tests.distillation import students


def at(batch, t=0.7):
    return jnp.asarray(batch.x0), jnp.full(students.BATCH, t), jax.tree.map(jnp.asarray, batch.cond)


def distil(method, model=None, **teacher):
    model = students.make_model(has_second_time=True) if model is None else model
    taught = students.make_teacher()._replace(**teacher)
    return build.distilled(model, method, students.OPTIMIZER, students.rows(0, 1), taught, seed=0, ema_decay=0.9)


def test_a_student_without_a_target_time_is_refused():
    with pytest.raises(ValueError, match="has_second_time=True"):
        distil(distillation.MeanFlow(), students.make_model())


def test_attention_that_cannot_go_forwards_is_refused_with_those_that_can():
    cudnn = students.make_model(has_second_time=True, attention_implementation="cudnn")
    with pytest.raises(ValueError, match=r"attention 'cudnn' cannot: set .* one of flash_jvp, tiled, xla"):
        distil(distillation.MeanFlow(), cudnn)
    build.check_student(cudnn, distillation.MeanFlow(difference=0.02))
    build.check_student(cudnn, distillation.Shortcut())


def test_a_scale_as_input_needs_an_input_for_it():
    ranged = distillation.MeanFlow(guidance=distillation.Guidance(scale=1.0, max_scale=4.0))
    with pytest.raises(ValueError, match="has_guidance=True"):
        distil(ranged)
    with pytest.raises(ValueError, match="teaches one scale only"):
        distil(distillation.MeanFlow(), students.make_model(has_second_time=True, has_guidance=True))
    distil(ranged, students.make_model(has_second_time=True, has_guidance=True))


def test_a_teacher_without_an_unconditional_answer_cannot_be_guided():
    never = FlowMatching(drop_rates=conditioning.DropRates(text=0.0))
    with pytest.raises(ValueError, match="unconditional answer"):
        distil(students.METHODS["mean_flow"], objective=never)
    distil(distillation.MeanFlow(), objective=never)


def test_a_teacher_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="predicts x0"):
        distil(distillation.MeanFlow(), objective=FlowMatching(prediction="x0"))
    with pytest.raises(ValueError, match="VariancePreservingCosine"):
        distil(distillation.MeanFlow(), objective=FlowMatching(schedule=schedules.VariancePreservingCosine()))


@pytest.mark.long
def test_a_method_that_learns_from_a_teacher_needs_one():
    model = students.make_model(has_second_time=True)
    with pytest.raises(ValueError, match="DMD2 learns from a teacher: set teacher=RUN"):
        build.distilled(
            model, distillation.DMD2(), students.OPTIMIZER, students.rows(0, 1), None, seed=0, ema_decay=0.9
        )
    made = build.distilled(
        model,
        distillation.MeanFlow(source="data"),
        students.OPTIMIZER,
        students.rows(0, 1),
        None,
        seed=0,
        ema_decay=0.9,
    )
    assert made.make_state(*made.arguments).extra == {}


@pytest.mark.long
def test_the_guided_teacher_obeys_scale_and_interval():
    taught = students.make_teacher()
    network, params = build.as_network(taught.network), jax.tree.map(jnp.asarray, taught.params)
    x, _, cond = at(students.rows(1))
    t = jnp.linspace(0.1, 0.8, students.BATCH)
    of_cond = network(params, x, t, cond)
    of_null = network(params, x, t, conditioning.null(cond, parts=("text", "pooled")))

    def ask(**fields):
        return teachers.Guidance(**fields).velocity(network, params, x, t, cond)

    np.testing.assert_array_equal(ask(), of_cond)
    guided = of_null + 3 * (of_cond - of_null)
    np.testing.assert_allclose(ask(scale=3.0), guided, atol=2e-5)
    part = ask(scale=3.0, interval=(0.3, 0.6))
    inside = np.asarray((t > 0.3) & (t <= 0.6))
    np.testing.assert_allclose(part[inside], guided[inside], atol=2e-5)
    np.testing.assert_allclose(part[~inside], of_cond[~inside], atol=2e-5)


def test_drawn_scales_lie_in_their_range_evenly_in_the_logarithm():
    scales = np.asarray(teachers.Guidance(scale=1.0, max_scale=9.0).sample(jax.random.key(0), 20_000))
    assert scales.min() >= 1
    assert scales.max() <= 9
    assert abs(np.mean(scales < 3) - 0.5) < 0.02


def test_settings_that_cannot_be_meant_are_refused():
    for make, message in [
        (lambda: teachers.Guidance(scale=-1.0), "scale=-1"),
        (lambda: teachers.Guidance(scale=2.0, max_scale=1.0), "max_scale"),
        (lambda: teachers.Guidance(interval=(0.5, 0.2)), "interval"),
        (lambda: distillation.Progressive(first_steps=12), "power of two"),
        (lambda: distillation.Shortcut(max_steps=1), "power of two"),
        (lambda: distillation.MeanFlow(is_improved=True), "is_improved"),
        (lambda: distillation.MeanFlow(difference=2.0), "difference=2"),
        (lambda: distillation.DiscreteConsistency(huber=0.0), "huber"),
        (lambda: distillation.DMD2(num_steps=(0,)), r"num_steps=\(0,\)"),
        (lambda: distillation.DMD2(sampler="euler"), "renoise or flow_map"),
        (lambda: distillation.Joint(flow_scale=0.0, matching_scale=0.0), "one above 0"),
        (lambda: distillation.AnyPair(same_share=0.9, full_share=0.2), "together <= 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()


def test_methods_of_earlier_versions_keep_loading():
    for method in (distillation.Progressive(first_steps=8), distillation.Shortcut(max_steps=8)):
        saved = config.to_dict(method) | {"_class_name": f"nova_jax.distillation.semigroup:{type(method).__name__}"}
        assert config.from_dict(saved) == method


def test_a_method_declares_what_its_students_predict_as_an_objective_does():
    for declares in (FlowMatching(), *students.METHODS.values()):
        assert isinstance(declares, DenoisingObjective)
    assert not isinstance(Reconstruction(), DenoisingObjective), "an autoencoder predicts nothing about x_t"
    assert distillation.MeanFlow().drop_rates.text > 0
    assert not distillation.DMD2().drop_rates.text
