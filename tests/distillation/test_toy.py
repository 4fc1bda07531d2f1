"""Students of the exact two-dimensional problem, against the truth; thresholds have about twice the measured slack."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import distill_toy
from nova_jax import distillation
from nova_jax.distillation import flow_map
from nova_jax.types import Conditioning

POINTS = 8192
EULER_IN_FOUR_STEPS = 0.199  # sliced W2 of the exact velocity
FROM_DATA = ("shortcut_data", "mean_flow_data", "improved_mean_flow_data")
FLOW_MAPS = ("progressive", "shortcut", "mean_flow", *FROM_DATA)


@functools.cache
def student(name):
    trial = distill_toy.TRIALS[name]
    start = distill_toy.velocity_network(0, 1.0) if trial.from_velocity else None
    return distill_toy.train(trial, 0, 1.0, start).ema


@functools.cache
def scores(name):
    return distill_toy.measure(distill_toy.TRIALS[name], student(name), POINTS)


@pytest.mark.long
def test_minutes_of_shortcut_training_beat_four_steps_of_the_teacher_in_one():
    trial = distill_toy.TRIALS["shortcut"]
    params = distill_toy.train(trial, 0, scale=0.02).ema
    assert distill_toy.measure(trial, params, 2048)[1]["swd"] < EULER_IN_FOUR_STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", distill_toy.TRIALS)
def test_one_step_of_a_student_beats_four_of_its_teacher(name):
    assert scores(name)[1]["swd"] < EULER_IN_FOUR_STEPS


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in distill_toy.TRIALS if name not in (*FROM_DATA, "dmd2")])
def test_a_student_of_the_teachers_velocity_keeps_its_map(name):
    assert scores(name)[1]["swd"] <= 0.05
    assert scores(name)[1]["rms"] <= 0.13


@pytest.mark.slow
@pytest.mark.parametrize("name", FROM_DATA)
def test_a_student_of_data_comes_near_the_data(name):
    assert scores(name)[1]["swd"] <= 0.12
    assert scores(name)[4]["swd"] <= 0.06


@pytest.mark.slow
def test_matching_keeps_every_mode():
    assert scores("dmd2")[1]["swd"] <= 0.08
    assert scores("dmd2")[1]["worst_mode"] <= 0.03


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOW_MAPS)
def test_a_flow_map_gets_no_worse_with_more_steps(name):
    one, two, four = (scores(name)[steps]["swd"] for steps in (1, 2, 4))
    assert two <= 1.1 * one
    assert four <= 1.1 * two


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOW_MAPS)
def test_two_jumps_of_a_flow_map_end_where_one_does(name):
    params, cond = student(name), Conditioning()
    x = jax.random.normal(jax.random.key(3), (2048, 2))
    one, half, zero = (jnp.full(len(x), t) for t in (1.0, 0.5, 0.0))

    def jump(x, t, r):
        return flow_map.jump(lambda *at: flow_map.average_velocity(distill_toy.network, params, *at, cond), x, t, r)

    apart = np.asarray(jump(jump(x, one, half), half, zero) - jump(x, one, zero))
    residual = float(np.sqrt(np.mean(np.sum(apart**2, axis=1))))
    assert residual <= scores(name)[1]["rms"], "the semigroup holds better than the map itself"


def test_every_trial_is_a_method_of_the_library():
    assert {type(trial.method) for trial in distill_toy.TRIALS.values()} <= set(distillation.Method.__subclasses__())
