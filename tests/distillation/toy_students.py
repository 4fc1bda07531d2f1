"""Every method on the tiny denoiser of the training tests: what its steps are tested with, and killed with."""

import jax
import numpy as np

from nova_jax import distillation
from nova_jax.runs import build
from nova_jax.types import Conditioning
from tests.distillation import students
from tests.training import toy


def teacher_network(params, x, t, cond):
    """The tiny denoiser of the training tests, told a condition."""
    return toy.network(params, x + 0.3 * cond.pooled.reshape(-1, 1, 1, 1, x.shape[-1]), t, cond)


def student_network(params, x, t, cond):
    """The same at r = t."""
    r = t if cond.r is None else cond.r
    return teacher_network(params, x, t + 0.5 * (t - r), cond)


NETWORKS = distillation.Networks(student=student_network, teacher=teacher_network, critic=teacher_network)


def make_recipe(name):
    method = students.METHODS[name]
    params = toy.init_params(jax.random.key(1))

    def make_state(params):
        return distillation.start(method, NETWORKS, params, params, students.OPTIMIZER)

    train_step = method.make_step(NETWORKS, students.OPTIMIZER, ema_decay=0.9)
    return build.Recipe(make_state, (params,), train_step)


def rows(position, shard=(0, 1)):
    """One process's rows of the batch that starts at `position`, each with a condition of its own."""
    batch = toy.rows(position, shard=shard)
    first = position + shard[0] * len(batch.x0)
    draws = [
        np.random.default_rng((first + i, 1)).standard_normal(toy.SHAPE[-1], np.float32) for i in range(len(batch.x0))
    ]
    return batch._replace(cond=Conditioning(pooled=np.stack(draws)))
