"""What a distillation method is: the loss of a few-step student, and what must be remembered to compute it.

    memory     what the loss reads beside the student: a teacher, a critic, an earlier student     in TrainState.extra
    prepare    what changes in that memory before the student's update; as a rule nothing
    loss       the equation

`make_step` turns them into the `TrainStep` that the training loop runs. Memory is part of the state, so it is sharded
by the same table, saved in the same checkpoint and resumed to the bit.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from nova_jax.diffusion import conditioning, schedules
from nova_jax.diffusion import prediction as predictions
from nova_jax.distillation import flow_map
from nova_jax.distillation import teacher as teachers
from nova_jax.distillation.flow_map import TimesOfSamples
from nova_jax.training import step as steps
from nova_jax.training.optimizer import Optimizer
from nova_jax.types import Batch, Conditioning, Metrics, Network, Params, Samples, TrainState, TrainStep

StudentVelocity = Callable[[Params, Samples, TimesOfSamples, TimesOfSamples], Samples]  # (params, x, t, r) -> u
TeacherVelocity = Callable[[Samples, TimesOfSamples], Samples]  # (x, t) -> v


class Networks(NamedTuple):
    """The networks that a method trains and evaluates; each takes (params, x, t, cond).

    Attributes:
        student: reads `cond.r`, and `cond.guidance_scale` if it has an input for it.
        teacher: predicts velocity and reads neither.
        critic: learns the student's velocity, as a rule with the teacher's network; its parameters start as the
            teacher's.
        judge: a discriminator's head on the teacher's hidden tokens, (head's params, teacher's params, x, t, cond) ->
            logits, positive for real.
        init_judge: key -> parameters of that head.
    """

    student: Network
    teacher: Any = None
    critic: Any = None
    judge: Any = None
    init_judge: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A way to train a few-step student. It stands where a `TrainConfig` has its objective.

    Attributes:
        guidance: folded into the student.
        sampler: for its students, a name of `sampling.SAMPLERS`.
    """

    guidance: teachers.Guidance = teachers.Guidance()
    sampler: str = "flow_map"

    schedule: ClassVar[schedules.Schedule] = flow_map.SCHEDULE
    prediction: ClassVar[predictions.Kind] = "velocity"
    drop_rates: ClassVar[conditioning.DropRates] = conditioning.DropRates(text=0.0, pooled=0.0)

    @property
    def needs_teacher(self) -> bool:
        """Whether it learns from a trained network; else from data alone."""
        return True

    @property
    def needs_jvp(self) -> bool:
        """Whether it differentiates the student's network in forward mode."""
        return False

    @property
    def trained_steps(self) -> tuple[int, ...] | None:
        """The numbers of steps that its students have learnt; None: any."""
        return None

    @property
    @abc.abstractmethod
    def forwards(self) -> float | int:
        """Forward passes that a training step costs for each row, about: a gradient counts 3, a jvp 1 more."""

    @property
    def judged_layers(self) -> int:
        """Layers of the teacher whose tokens a discriminator judges; 0: there is none."""
        return 0

    def memory(self, networks: Networks, params: Params, teacher: Params | None) -> dict[str, Any]:
        """`TrainState.extra` at the start, from the student's and the teacher's parameters."""
        del networks, params
        return {"teacher": teacher} if self.needs_teacher else {}

    def prepare(
        self, networks: Networks, state: TrainState, batch: Batch, key: PRNGKeyArray, *, accumulate: int
    ) -> tuple[TrainState, PRNGKeyArray, Metrics]:
        """The state before the student's update, the key that is left for its loss, and metrics."""
        del networks, batch, accumulate
        return state, key, {}

    @abc.abstractmethod
    def loss(
        self, networks: Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """What `params`, those of the student, minimise; `state` holds the EMA, the step and the memory."""

    def make_step(
        self, networks: Networks, optimizer: Optimizer, *, ema_decay: float, accumulate: int = 1, seed: int = 0
    ) -> TrainStep:
        """The compiled training step: `prepare`, then one update of the student; see `training.step`."""
        return steps.make_step_with_memory(
            functools.partial(self.loss, networks),
            optimizer,
            ema_decay=ema_decay,
            accumulate=accumulate,
            seed=seed,
            prepare=functools.partial(self.prepare, networks, accumulate=accumulate),
        )

    def velocities(
        self, networks: Networks, state: TrainState, cond: Conditioning, scale: Array | None
    ) -> tuple[StudentVelocity, TeacherVelocity]:
        """The student's u(params, x, t, r) and the guided teacher's v(x, t) for these conditions and scales."""
        for_student = cond if scale is None else cond._replace(guidance_scale=scale)

        def u(params: Params, x: Samples, t: TimesOfSamples, r: TimesOfSamples) -> Samples:
            return flow_map.average_velocity(networks.student, params, x, t, r, for_student)

        def v(x: Samples, t: TimesOfSamples) -> Samples:
            return self.guidance.velocity(networks.teacher, state.extra["teacher"], x, t, cond, scale)

        return u, v


def start(
    method: Method, networks: Networks, params: Params, teacher: Params | None, optimizer: Optimizer
) -> TrainState:
    """The state before the first step, for `training.step.build`."""
    teacher = jax.tree.map(jnp.copy, teacher)
    return steps.start(params, optimizer, lambda student: method.memory(networks, student, teacher))


def noised(x0: Samples, t: TimesOfSamples, key: PRNGKeyArray) -> tuple[Samples, Samples]:
    """(x_t, eps) with fresh noise."""
    eps = jax.random.normal(key, x0.shape)
    return predictions.add_noise(x0.astype(jnp.float32), eps, t, flow_map.SCHEDULE), eps


def mean_square(error: Samples) -> TimesOfSamples:
    """The mean over the elements of each sample."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
