"""One training step: a pure function of state and batch, compiled once, the same to the bit whenever it is run again.

    key   = fold_in(key(seed), step)
    g     = gradient of the objective, mean over `accumulate` parts of the batch
    p    <- p + optimizer(g)
    ema  <- ema + (1 - d) (p - ema),   d = min(ema_decay, (1 + step) / (10 + step))

A step whose loss or gradient is not finite leaves the whole state as it was and says so in its metrics.

State is born sharded: shapes by `eval_shape`, shardings by `parallel.rules`, then the jitted initialiser writes every
part where it belongs. Compile and run inside `jax.set_mesh(mesh)`; without a mesh everything runs on one device.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from nova_jax.parallel import rules
from nova_jax.parallel.constrain import constrain
from nova_jax.training.optimizer import Optimizer
from nova_jax.types import Metrics, Objective, Params, TrainState, TrainStep

MakeExtra = Callable[[Params], Any]
Loss = Callable[[Params, Any, PRNGKeyArray], tuple[Array, Metrics]]  # (params, batch, key) -> (loss, metrics)
StateLoss = Callable[[Params, TrainState, Any, PRNGKeyArray], tuple[Array, Metrics]]
Prepare = Callable[[TrainState, Any, PRNGKeyArray], tuple[TrainState, PRNGKeyArray, Metrics]]

# Otherwise XLA keeps bfloat16 values that are read again in float32, at twice the bytes.
COMPILER_OPTIONS: dict[str, bool | str] = {"xla_allow_excess_precision": False}


def start(params: Params, optimizer: Optimizer, make_extra: MakeExtra | None = None) -> TrainState:
    """The state before the first step, for `build`. Arrays are copied, so the state may be donated.

    Args:
        params: float32 parameters.
        optimizer: made into the optimizer state.
        make_extra: further state from the parameters, such as a teacher.
    """
    copy = jax.tree.map(jnp.copy, params)
    extra = make_extra(jax.tree.map(jnp.copy, params)) if make_extra else ()
    ema = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), copy, ema, optimizer.make().init(params), extra)


def build(make_state: Callable[..., TrainState], *arguments: Any, mesh: Mesh | None = None) -> TrainState:
    """Runs `make_state` where its result will live, each array on the devices where it stays.

    Args:
        make_state: makes a whole state of its arguments.
        arguments: keys, and trees of parameters that are placed by the table of `parallel.rules` first.
        mesh: None is one device.
    """
    if mesh is None:
        return jax.jit(make_state)(*arguments)
    shardings = rules.shardings(jax.eval_shape(make_state, *arguments), mesh)
    placed = [arg if _is_key(arg) else jax.device_put(arg, rules.shardings(arg, mesh)) for arg in arguments]
    return jax.jit(make_state, out_shardings=shardings)(*placed)


def plan(make_state: Callable[..., TrainState], *arguments: Any, mesh: Mesh | None = None) -> TrainState:
    """Shapes, dtypes and shardings of `build`, with nothing computed: to restore into, or to plan with."""
    abstract = jax.eval_shape(make_state, *arguments)
    if mesh is None:
        return abstract
    return jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, rules.shardings(abstract, mesh)
    )


def make_step(
    objective: Objective,
    network: Any,
    optimizer: Optimizer,
    *,
    ema_decay: float = 0.9999,
    accumulate: int = 1,
    seed: int = 0,
) -> TrainStep:
    """Compiles the training step of one objective. The state is donated: use the one that is returned.

    Args:
        objective: (network, params, batch, key) -> (loss, metrics); the loss is a mean over the batch.
        network: (params, x, t, cond) -> prediction, handed to the objective.
        optimizer: see `nova_jax.training.optimizer`.
        ema_decay: of the exponential moving average of the parameters; 0 keeps a copy of them.
        accumulate: parts the batch is processed in, one after the other, to save memory.
        seed: all randomness of the run.

    Returns:
        A `jax.jit` function; its metrics are those of the objective and `loss`, `grad_norm` (before clipping),
        `learning_rate` and `finite`.
    """

    def loss(params: Params, state: TrainState, batch: Any, key: PRNGKeyArray) -> tuple[Array, Metrics]:
        del state
        return objective(network, params, batch, key)

    return make_step_with_memory(loss, optimizer, ema_decay=ema_decay, accumulate=accumulate, seed=seed)


def make_step_with_memory(
    loss: StateLoss,
    optimizer: Optimizer,
    *,
    ema_decay: float = 0.9999,
    accumulate: int = 1,
    seed: int = 0,
    prepare: Prepare | None = None,
) -> TrainStep:
    """Like `make_step`, for a loss that also reads the rest of the state: a teacher, the EMA parameters, the step.

    Args:
        loss: (params, state, batch, key) -> (loss, metrics); differentiated by `params` alone.
        optimizer: see `nova_jax.training.optimizer`.
        ema_decay: as in `make_step`.
        accumulate: as in `make_step`.
        seed: as in `make_step`.
        prepare: (state, batch, key) -> (state, key, metrics) before the update: it may change `state.extra`, such as by
            updates of a second player, and leaves a key for the loss; None: nothing is prepared.

    Raises:
        ValueError: a decay outside [0, 1), fewer than one part.
    """
    if not 0 <= ema_decay < 1 or accumulate < 1:
        raise ValueError(f"ema_decay must be in [0, 1) and accumulate at least 1, got {ema_decay} and {accumulate}")
    transform = optimizer.make()

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        ready, key, prepared = (state, key, {}) if prepare is None else prepare(state, batch, key)
        params, opt_state, metrics = descend(
            lambda params, batch, key: loss(params, ready, batch, key),
            state.params,
            state.opt_state,
            transform,
            batch,
            key,
            accumulate=accumulate,
        )
        ema = update_ema(state.ema, params, state.step, ema_decay)
        new = TrainState(state.step + 1, params, ema, opt_state, ready.extra)
        rate = optimizer.learning_rate(state.step)
        return _commit(state, new, {**metrics, **prepared, "learning_rate": rate})

    return jax.jit(step, donate_argnums=0, compiler_options=COMPILER_OPTIONS)


def uncompiled(train_step: TrainStep) -> TrainStep:
    """A training step to be called inside another jitted function, which alone may have options of the compiler."""
    return inspect.unwrap(train_step)


def descend(
    loss: Loss,
    params: Params,
    opt_state: Any,
    transform: optax.GradientTransformation,
    batch: Any,
    key: PRNGKeyArray,
    *,
    accumulate: int = 1,
) -> tuple[Params, Any, dict[str, Array]]:
    """One update of one player: its parameters, its optimizer state, and metrics with `loss` and `grad_norm`."""

    def gradient(params: Params, batch: Any, key: PRNGKeyArray) -> tuple[Params, Metrics]:
        (value, metrics), grads = jax.value_and_grad(lambda p: loss(p, batch, key), has_aux=True)(params)
        return rules.constrain_tree(grads), {**metrics, "loss": value}

    grads, metrics = _accumulated(gradient, accumulate)(params, batch, key)
    updates, opt_state = transform.update(grads, opt_state, params)
    new: Any = optax.apply_updates(params, updates)
    return new, opt_state, {**metrics, "grad_norm": optax.global_norm(grads)}


def _commit(state: TrainState, new: TrainState, metrics: dict[str, Array]) -> tuple[TrainState, Metrics]:
    """The new state, or the old one whole if `loss` or `grad_norm` is not finite, and the metrics with `finite`."""
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
    kept = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    return rules.constrain_tree(kept), {**metrics, "finite": finite}


def update_ema(ema: Params, params: Params, step: Array, decay: float) -> Params:
    """The moving average, its decay warmed up so that early averages forget the initialisation."""
    step = jnp.asarray(step, jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda average, p: average + rate * (p - average), ema, params)


def _accumulated(gradient: Callable, parts: int) -> Callable:
    """The mean of `gradient` and its metrics over parts of the batch, each spread over all devices."""
    if parts == 1:
        return gradient

    def mean(params: Params, batch: Any, key: PRNGKeyArray) -> tuple[Params, Metrics]:
        def body(total: Any, part: tuple[Any, Array]) -> tuple[Any, None]:
            rows, index = part
            return jax.tree.map(jnp.add, total, gradient(params, rows, jax.random.fold_in(key, index))), None

        split = jax.tree.map(lambda x: _split_rows(x, parts), batch)
        first = jax.tree.map(lambda x: x[0], split)
        zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(gradient, params, first, key))
        total, _ = jax.lax.scan(body, zeros, (split, jnp.arange(parts)))
        return jax.tree.map(lambda x: x / parts, total)

    return mean


def _split_rows(x: Array, parts: int) -> Array:
    """Part i is rows i, i + parts, ..: a device then takes an equal share of its own rows to every part."""
    if x.shape[0] % parts:
        raise ValueError(f"a batch of {x.shape[0]} cannot be accumulated in {parts} equal parts")
    split = jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0)
    return constrain(split, None, "batch", *[None] * (split.ndim - 2))


def _is_key(value: Any) -> bool:
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)
