"""Distribution matching distillation: the student's samples follow the teacher's distribution, not its trajectories.

    x    = G(x_t, t) = X(x_t, t, 0)                              a sample of the student
    x_s  = (1 - s) x + s eps                                     noised again, s ~ time_sampling
    (1)  g = (x0_critic(x_s) - x0_teacher(x_s)) / mean |x - x0_teacher(x_s)|,      loss = 1/2 mean || x - sg(x - g) ||^2
    (2)  critic loss = mean || v_critic(x_s, s) - (eps - x) ||^2

g is the difference of two scores: that of the student's distribution, which the critic learns by flow matching on the
student's samples (2), and that of the guided teacher. A training step is `critic_updates` updates of the critic, each
on new samples, and one of the student: the critic must keep up (two time scales).

Where x_t comes from: at t = 1 it is noise; a student of N steps is trained on the inputs that its own earlier steps
produce (backward simulation), with N and the number of earlier steps drawn for each batch. A discriminator on the
teacher's hidden tokens (`adversarial`), which sees real data beside the student's samples, corrects the teacher's
errors.

Yin et al. 2024, DMD2, arXiv 2405.14867: sections 4.2 - 4.5; (1) is equation 7 of DMD, 2311.18828.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from nova_jax.diffusion import time_sampling as time_samplings
from nova_jax.distillation import adversarial, flow_map, method
from nova_jax.distillation.flow_map import TimesOfSamples
from nova_jax.training import step as steps
from nova_jax.training.optimizer import AdamW, Optimizer
from nova_jax.types import Batch, Metrics, Params, Samples, TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class DMD2(method.Method):
    """Distribution matching with a critic and, if given, a discriminator.

    Attributes:
        num_steps: each N that the student learns, at times 1, 1 - 1/N, .., 1/N; one named twice is drawn twice as
            often.
        critic_updates: in each training step.
        critic_optimizer: of the critic and the discriminator.
        time_sampling: of s.
        discriminator_layers: of the teacher, whose tokens a discriminator judges; 0: none.
        adversarial_scale: weight of its judgement in the student's loss.
        penalty_scale: weight of the penalty on its gradient.
        penalty_sigma: noise that the penalty adds, in units of the data.
    """

    sampler: str = "renoise"
    num_steps: tuple[int, ...] = (1,)
    critic_updates: int = 5
    critic_optimizer: Optimizer = AdamW(peak=1e-4, warmup=0)
    time_sampling: time_samplings.TimeSampling = dataclasses.field(default_factory=time_samplings.Uniform)
    discriminator_layers: int = 0
    adversarial_scale: float = 0.01
    penalty_scale: float = 1.0
    penalty_sigma: float = 0.1

    def __post_init__(self) -> None:
        if min(self.num_steps, default=0) < 1 or self.critic_updates < 1:
            raise ValueError(f"num_steps={self.num_steps} and critic_updates={self.critic_updates} must be at least 1")
        if self.sampler not in ("renoise", "flow_map"):
            raise ValueError(f"sampler={self.sampler!r}: a student is simulated by renoise or flow_map")

    @property
    def trained_steps(self) -> tuple[int, ...]:  # noqa: D102 (the base says it)
        return tuple(sorted(set(self.num_steps)))

    @property
    def judged_layers(self) -> int:  # noqa: D102
        return self.discriminator_layers

    @property
    def forwards(self) -> float | int:  # noqa: D102
        mean = sum(self.num_steps) / len(self.num_steps)
        back = (mean - 1) / 2  # of the simulation, on average; the discriminator's forwards are left out
        return self.critic_updates * (back + 1 + 3) + back + 3 + 1 + self.guidance.evaluations

    def memory(  # noqa: D102
        self, networks: method.Networks, params: Params, teacher: Params | None
    ) -> dict[str, Any]:
        critic = {"network": jax.tree.map(jnp.copy, teacher)}
        if self.judged_layers:
            critic["head"] = networks.init_judge(jax.random.key(0))
        optimizer_state = self.critic_optimizer.make().init(critic)
        known = super().memory(networks, params, teacher)
        return {**known, "critic": critic, "critic_opt_state": optimizer_state}

    def prepare(
        self, networks: method.Networks, state: TrainState, batch: Batch, key: PRNGKeyArray, *, accumulate: int
    ) -> tuple[TrainState, PRNGKeyArray, Metrics]:
        """The critic catches up: `critic_updates` updates by its loss, each on new samples."""
        key_critic, key_student = jax.random.split(key)
        transform = self.critic_optimizer.make()

        def update(critic_state: tuple, key: PRNGKeyArray) -> tuple[tuple, Array]:
            critic, opt_state, metrics = steps.descend(
                lambda critic, batch, key: (self.critic_loss(networks, critic, state, batch, key), {}),
                critic_state[0],
                critic_state[1],
                transform,
                batch,
                key,
                accumulate=accumulate,
            )
            return (critic, opt_state), metrics["loss"]

        critic_state = (state.extra["critic"], state.extra["critic_opt_state"])
        (critic, opt_state), losses = jax.lax.scan(
            update, critic_state, jax.random.split(key_critic, self.critic_updates)
        )
        extra = {**state.extra, "critic": critic, "critic_opt_state": opt_state}
        return state._replace(extra=extra), key_student, {"critic_loss": losses.mean()}

    def loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """Equation 1 on new samples for the conditions of one batch; the metric `score_gap` is the mean size of g."""
        key_scale, key_input, key_time, key_noise = jax.random.split(key, 4)
        u, teacher = self.velocities(networks, state, batch.cond, self.guidance.sample(key_scale, batch.x0.shape[0]))
        x = self._generate(u, params, batch.x0.shape, key_input)
        s = self._draw_times(key_time, x)
        x_s, _ = method.noised(x, s, key_noise)

        frozen = jax.lax.stop_gradient(x_s)
        v_real = teacher(frozen, s)
        v_fake = networks.critic(state.extra["critic"]["network"], frozen, s, batch.cond).astype(jnp.float32)
        real, fake = (flow_map.move(frozen, s, jnp.zeros_like(s), v) for v in (v_real, v_fake))
        size = jnp.mean(jnp.abs(x - real), axis=tuple(range(1, x.ndim)), keepdims=True)
        g = jax.lax.stop_gradient((fake - real) / jnp.maximum(size, 1e-6))
        loss = method.mean_square(x - jax.lax.stop_gradient(x - g)).mean() / 2
        metrics = {"score_gap": jnp.abs(g).mean()}
        if not self.judged_layers:
            return loss, metrics
        logits = networks.judge(state.extra["critic"]["head"], state.extra["teacher"], x_s, s, batch.cond)
        fooled = adversarial.generator_loss(logits)
        return loss + self.adversarial_scale * fooled, {**metrics, "adversarial": fooled}

    def critic_loss(
        self, networks: method.Networks, critic: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> Array:
        """Equation 2 on new samples of the student, and the discriminator's loss on them and on data."""
        key_scale, key_input, key_time, key_noise, key_judge = jax.random.split(key, 5)
        u, _ = self.velocities(networks, state, batch.cond, self.guidance.sample(key_scale, batch.x0.shape[0]))
        x = jax.lax.stop_gradient(self._generate(u, state.params, batch.x0.shape, key_input))
        s = self._draw_times(key_time, x)
        x_s, eps = method.noised(x, s, key_noise)
        v = networks.critic(critic["network"], x_s, s, batch.cond).astype(jnp.float32)
        loss = method.mean_square(v - (eps - x)).mean()
        if not self.judged_layers:
            return loss

        key_real, key_penalty = jax.random.split(key_judge)
        real, _ = method.noised(batch.x0, s, key_real)

        def judge(x: Samples) -> Array:
            return networks.judge(critic["head"], state.extra["teacher"], x, s, batch.cond)

        of_real = judge(real)
        penalty = adversarial.approximate_r1(judge, real, of_real, key=key_penalty, sigma=self.penalty_sigma)
        return loss + (adversarial.discriminator_loss(of_real, judge(x_s)) + self.penalty_scale * penalty)

    def _draw_times(self, key: PRNGKeyArray, x: Samples) -> TimesOfSamples:
        return self.time_sampling.quantile(time_samplings.stratified(key, x.shape[:1]))

    def _generate(
        self, u: method.StudentVelocity, params: Params, shape: tuple[int, ...], key: PRNGKeyArray
    ) -> Samples:
        """G(x_t, t) from an x_t that the student itself has reached; only this last step has a gradient."""
        key_noise, key_steps, key_taken, key_path = jax.random.split(key, 4)
        u_frozen = functools.partial(u, jax.lax.stop_gradient(params))
        x = jax.random.normal(key_noise, shape)
        ones = jnp.ones(shape[:1])
        num_steps = jax.random.choice(key_steps, jnp.asarray(self.num_steps))

        def earlier_step(i: Array, x: Samples) -> Samples:
            t, t_next = ones * (1 - i / num_steps), ones * (1 - (i + 1) / num_steps)
            if self.sampler == "flow_map":
                return flow_map.jump(u_frozen, x, t, t_next)
            x0 = flow_map.jump(u_frozen, x, t, jnp.zeros_like(t))
            return method.noised(x0, t_next, jax.random.fold_in(key_path, i))[0]

        taken = jax.random.randint(key_taken, (), 0, num_steps)
        if self.num_steps != (1,):
            x = jax.lax.fori_loop(0, taken, earlier_step, x)
        t = ones * (1 - taken / num_steps)
        return flow_map.jump(functools.partial(u, params), jax.lax.stop_gradient(x), t, jnp.zeros_like(t))
