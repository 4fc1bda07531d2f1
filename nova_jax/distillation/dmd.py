"""Distribution matching distillation: the student's pictures as a whole follow the teacher's, one by one they need not.

    x    = G(x_t, t) = X(x_t, t, 0)                              a picture of the student
    x_s  = (1 - s) x + s eps                                     noised again, s ~ time_sampling
    (1)  g = (x0_critic(x_s) - x0_teacher(x_s)) / mean |x - x0_teacher(x_s)|,      loss = 1/2 mean || x - sg(x - g) ||^2
    (2)  critic loss = mean || v_critic(x_s, s) - (eps - x) ||^2

g is the difference of two scores, that of the student's distribution, which the critic learns by flow matching on the
student's pictures (2), and that of the guided teacher. A training step is `critic_updates` updates of the critic, each
on new pictures, and one of the student: the critic must keep up (two time scales).

Where x_t comes from: at t = 1 it is noise; a student of N steps is trained on the inputs that its own earlier steps
produce (backward simulation), N and the number of steps behind it drawn anew for each batch. A discriminator on the
teacher's hidden tokens (`adversarial`), which sees real data beside the student's pictures, corrects what the teacher
has wrong.

Yin et al. 2024, DMD2, arXiv 2405.14867: sections 4.2 - 4.5; (1) is equation 7 of DMD, 2311.18828.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from nova_jax.diffusion import time_sampling as time_samplings
from nova_jax.distillation import adversarial, flow_map, method
from nova_jax.distillation.flow_map import Samples, TimesOfSamples
from nova_jax.training import step as steps
from nova_jax.training.optimizer import AdamW, Optimizer
from nova_jax.types import Batch, Conditioning, Metrics, Params, TrainState, TrainStep


@dataclasses.dataclass(frozen=True, kw_only=True)
class DMD2(method.Method):
    """Distribution matching with a critic and, if given, a discriminator.

    Attributes:
        num_steps: each N that the student learns, at times 1, 1 - 1/N, .., 1/N; one that stands twice is drawn twice as
            often.
        critic_updates: of each step.
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
        back = (mean - 1) / 2  # of the simulation, on average; a discriminator's layers are left out
        return self.critic_updates * (back + 1 + 3) + back + 3 + 1 + self.guidance.evaluations

    def memory(  # noqa: D102
        self, networks: method.Networks, params: Params, teacher: Params | None
    ) -> dict[str, Any]:
        del params
        critic = {"network": jax.tree.map(jnp.copy, teacher)}
        if self.judged_layers:
            critic["head"] = networks.init_judge(jax.random.key(0))
        return {"teacher": teacher, "critic": critic, "critic_opt_state": self.critic_optimizer.make().init(critic)}

    def make_step(  # noqa: D102
        self, networks: method.Networks, optimizer: Optimizer, *, ema_decay: float, accumulate: int = 1, seed: int = 0
    ) -> TrainStep:
        def loss(params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray) -> tuple[Array, Metrics]:
            return self.matching_loss(networks, params, state, batch, key)

        return make_two_player_step(
            self, loss, networks, optimizer, ema_decay=ema_decay, accumulate=accumulate, seed=seed
        )

    def matching_loss(
        self, networks: method.Networks, params: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """(1) on new pictures for the conditions of one batch; `score_gap` is the mean size of g."""
        key_scale, key_input, key_time, key_noise = jax.random.split(key, 4)
        scale = self.guidance.draw(key_scale, batch.x0.shape[0])
        cond = method.told(batch.cond, scale)
        x = self._picture(networks, params, batch, cond, key_input)
        s = self._times(key_time, x)
        x_s, _ = method.noised(x, s, key_noise)
        frozen = jax.lax.stop_gradient(x_s)
        teacher = self.guidance.velocity(networks.teacher, state.extra["teacher"], frozen, s, batch.cond, scale)
        critic = networks.critic(state.extra["critic"]["network"], frozen, s, _plain(batch.cond)).astype(jnp.float32)
        real, fake = (flow_map.move(frozen, s, jnp.zeros_like(s), v) for v in (teacher, critic))
        size = jnp.mean(jnp.abs(x - real), axis=tuple(range(1, x.ndim)), keepdims=True)
        g = jax.lax.stop_gradient((fake - real) / jnp.maximum(size, 1e-6))
        loss = method.mean_square(x - jax.lax.stop_gradient(x - g)).mean() / 2
        metrics = {"score_gap": jnp.abs(g).mean()}
        if not self.judged_layers:
            return loss, metrics
        logits = networks.judge(state.extra["critic"]["head"], state.extra["teacher"], x_s, s, _plain(batch.cond))
        fooled = adversarial.generator_loss(logits)
        return loss + self.adversarial_scale * fooled, {**metrics, "adversarial": fooled}

    def critic_loss(
        self, networks: method.Networks, critic: Params, state: TrainState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Array, Metrics]:
        """(2) on new pictures of the student, and the discriminator's loss on them and on data."""
        key_scale, key_input, key_time, key_noise, key_judge = jax.random.split(key, 5)
        cond = method.told(batch.cond, self.guidance.draw(key_scale, batch.x0.shape[0]))
        x = jax.lax.stop_gradient(self._picture(networks, state.params, batch, cond, key_input))
        s = self._times(key_time, x)
        x_s, eps = method.noised(x, s, key_noise)
        v = networks.critic(critic["network"], x_s, s, _plain(batch.cond)).astype(jnp.float32)
        loss = method.mean_square(v - (eps - x)).mean()
        if self.judged_layers:
            loss = loss + self._judgement(networks, critic["head"], state, batch, x_s, s, key_judge)
        return loss, {}

    def _judgement(
        self,
        networks: method.Networks,
        head: Params,
        state: TrainState,
        batch: Batch,
        fake: Samples,
        s: TimesOfSamples,
        key: PRNGKeyArray,
    ) -> Array:
        """The discriminator's loss with its penalty; data is noised to the same times as the pictures."""
        key_noise, key_penalty = jax.random.split(key)
        real, _ = method.noised(batch.x0, s, key_noise)

        def judge(x: Samples) -> Array:
            return networks.judge(head, state.extra["teacher"], x, s, _plain(batch.cond))

        of_real = judge(real)
        penalty = adversarial.approximate_r1(judge, real, of_real, key=key_penalty, sigma=self.penalty_sigma)
        return adversarial.discriminator_loss(of_real, judge(fake)) + self.penalty_scale * penalty

    def _times(self, key: PRNGKeyArray, x: Samples) -> TimesOfSamples:
        return self.time_sampling.quantile(time_samplings.stratified(key, x.shape[:1]))

    def _picture(
        self, networks: method.Networks, params: Params, batch: Batch, cond: Conditioning, key: PRNGKeyArray
    ) -> Samples:
        """X(x_t, t, 0) from an input that the student itself has reached."""
        key_noise, key_steps, key_taken, key_walk = jax.random.split(key, 4)
        frozen = jax.lax.stop_gradient(params)
        z = jax.random.normal(key_noise, batch.x0.shape)
        ones = jnp.ones(batch.x0.shape[:1])
        num_steps = jax.random.choice(key_steps, jnp.asarray(self.num_steps))

        def back(i: Array, x: Samples) -> Samples:
            t, t_next = ones * (1 - i / num_steps), ones * (1 - (i + 1) / num_steps)
            if self.sampler == "flow_map":
                return flow_map.jump(networks.student, frozen, x, t, t_next, cond)
            x0 = flow_map.jump(networks.student, frozen, x, t, jnp.zeros_like(t), cond)
            return method.noised(x0, t_next, jax.random.fold_in(key_walk, i))[0]

        taken = jax.random.randint(key_taken, (), 0, num_steps)
        x_t = z if self.num_steps == (1,) else jax.lax.fori_loop(0, taken, back, z)
        t = ones * (1 - taken / num_steps)
        return flow_map.jump(networks.student, params, jax.lax.stop_gradient(x_t), t, jnp.zeros_like(t), cond)


def make_two_player_step(
    players: DMD2,
    loss: Callable[[Params, TrainState, Batch, PRNGKeyArray], tuple[Array, Metrics]],
    networks: method.Networks,
    optimizer: Optimizer,
    *,
    ema_decay: float,
    accumulate: int = 1,
    seed: int = 0,
) -> TrainStep:
    """One program: `critic_updates` updates of the critic in a loop, then one of the student by `loss`."""
    steps.check(ema_decay, accumulate)
    transform, critic_transform = optimizer.make(), players.critic_optimizer.make()

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key_critic, key_student = jax.random.split(jax.random.fold_in(jax.random.key(seed), state.step))

        def update_critic(critic_state: tuple, key: PRNGKeyArray) -> tuple[tuple, Array]:
            critic, opt_state = critic_state
            critic, opt_state, metrics = steps.descend(
                lambda critic, batch, key: players.critic_loss(networks, critic, state, batch, key),
                critic,
                opt_state,
                critic_transform,
                batch,
                key,
                accumulate=accumulate,
            )
            return (critic, opt_state), metrics["loss"]

        critic_state = (state.extra["critic"], state.extra["critic_opt_state"])
        keys = jax.random.split(key_critic, players.critic_updates)
        (critic, critic_opt_state), critic_losses = jax.lax.scan(update_critic, critic_state, keys)
        extra = {**state.extra, "critic": critic, "critic_opt_state": critic_opt_state}

        caught_up = state._replace(extra=extra)
        params, opt_state, metrics = steps.descend(
            lambda params, batch, key: loss(params, caught_up, batch, key),
            state.params,
            state.opt_state,
            transform,
            batch,
            key_student,
            accumulate=accumulate,
        )
        ema = steps.update_ema(state.ema, params, state.step, ema_decay)
        new = TrainState(state.step + 1, params, ema, opt_state, extra)
        rate = optimizer.learning_rate(state.step)
        return steps.commit(state, new, {**metrics, "critic_loss": critic_losses.mean(), "learning_rate": rate})

    return jax.jit(step, donate_argnums=0)


def _plain(cond: Conditioning) -> Conditioning:
    """What the teacher's network reads."""
    return cond._replace(r=None, guidance_scale=None)
