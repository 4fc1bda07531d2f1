"""What a distillation method is: a recipe for the state and for the training step of a few-step student.

The training loop knows only the `TrainStep`; all that a method remembers beside the student (teacher, critic, their
optimizer states, an earlier student) lies in `TrainState.extra`, so it is sharded by the same table, saved in the same
checkpoint and resumed to the bit.
"""

import abc
import dataclasses
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from nova_jax.diffusion import prediction, schedules
from nova_jax.distillation import flow_map
from nova_jax.distillation import teacher as teachers
from nova_jax.distillation.flow_map import Samples, TimesOfSamples
from nova_jax.training import step as steps
from nova_jax.training.optimizer import Optimizer
from nova_jax.types import Conditioning, Network, Params, TrainState, TrainStep


class Networks(NamedTuple):
    """The functions that a method trains and asks; each takes (params, x, t, cond).

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
        sampler: how its students draw, a name of `sampling.named.SAMPLERS`.
    """

    guidance: teachers.Guidance = teachers.Guidance()
    sampler: str = "flow_map"

    schedule: ClassVar[schedules.Schedule] = flow_map.SCHEDULE
    prediction: ClassVar[Any] = "velocity"

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

    @abc.abstractmethod
    def memory(self, networks: Networks, params: Params, teacher: Params | None) -> dict[str, Any]:
        """`TrainState.extra` at the start, from the student's and the teacher's parameters."""

    @abc.abstractmethod
    def make_step(
        self, networks: Networks, optimizer: Optimizer, *, ema_decay: float, accumulate: int = 1, seed: int = 0
    ) -> TrainStep:
        """The compiled training step; see `training.step.make_step`."""


def start(
    method: Method, networks: Networks, params: Params, teacher: Params | None, optimizer: Optimizer
) -> TrainState:
    """The state before the first step, for `training.step.build`."""
    teacher = jax.tree.map(jnp.copy, teacher)
    return steps.start(params, optimizer, lambda student: method.memory(networks, student, teacher))


def told(cond: Conditioning, scale: Array | None) -> Conditioning:
    """The condition with the drawn guidance scale, if one was drawn."""
    return cond if scale is None else cond._replace(guidance_scale=scale)


def noised(x0: Samples, t: TimesOfSamples, key: PRNGKeyArray) -> tuple[Samples, Samples]:
    """(x_t, eps) with fresh noise."""
    eps = jax.random.normal(key, x0.shape)
    return prediction.add_noise(x0.astype(jnp.float32), eps, t, flow_map.SCHEDULE), eps


def mean_square(error: Samples) -> TimesOfSamples:
    """The mean over the elements of each sample."""
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
