"""What a run trains: from the model and objective of a config to the state and the step that the loop is handed.

    an objective              a state from a key                          `training.step.make_step`
    a distillation method     a state from a key and the teacher          the method's own step

A teacher is a run folder. Its averaged parameters start the student and, frozen and without optimizer state, stay in
`TrainState.extra`: the student's checkpoints hold all that is needed to go on. Either kind of run may start from the
averaged parameters of another run instead, even from those of a network that lacks its newer inputs (`models.growth`),
or from an autoencoder of images that lacks time (`models.inflation`).
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from nova_jax import config as configs
from nova_jax import distillation
from nova_jax.layers import attention
from nova_jax.models import discriminator, features, growth, inflation
from nova_jax.models.dit import DiT
from nova_jax.models.vae import VAE
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import load, record
from nova_jax.runs.load import TrainedRun
from nova_jax.training import checkpoint, step
from nova_jax.training.optimizer import Optimizer
from nova_jax.types import Batch, Conditioning, Params, TrainState, TrainStep


class Recipe(NamedTuple):
    """How a state is made, of what, and the step that trains it; see `training.step.build`."""

    make_state: Callable[..., TrainState]
    arguments: tuple[Any, ...]
    train_step: TrainStep


def init_params(model: Any, example: Batch, key: jax.Array) -> Params:
    """Random parameters of a Linen module, or of an autoencoder."""
    if isinstance(model, nn.Module):
        x0, cond = jax.tree.map(jnp.asarray, tuple(example))
        return model.init(key, x0, jnp.zeros(x0.shape[0]), cond)["params"]
    return model.init(key)


def as_network(model: Any) -> Any:
    """(params, x, t, cond) -> prediction, for a Linen module; an autoencoder is its own network."""
    if not isinstance(model, nn.Module):
        return model
    return lambda params, x, t, cond: model.apply({"params": params}, x, t, cond)


def trained_params(model: Any, run_dir: str | pathlib.Path) -> Params:
    """The averaged parameters of a run, for `model` to start from.

    Raises:
        FileNotFoundError: the folder is not a run folder, or holds no checkpoint yet.
        ValueError: the run trained another kind of network, or an autoencoder that differs in more than time.
    """
    if not isinstance(model, VAE):
        return load.load_run(run_dir).params
    trained = configs.from_dict(record.read(run_dir)["config"]["model"])
    if not isinstance(trained, VAE):
        raise ValueError(f"{run_dir} trained a {type(trained).__name__}, from which an autoencoder cannot start")
    _, params = checkpoint.read_ema(pathlib.Path(run_dir) / "checkpoints")
    return inflation.inflate(trained, params, model)


def plain(
    model: Any,
    objective: Any,
    optimizer: Optimizer,
    example: Batch,
    *,
    seed: int,
    start_from: Params | None = None,
    **settings: Any,
) -> Recipe:
    """Training by an objective.

    Args:
        model: the network, or an autoencoder.
        objective: its loss.
        optimizer: of the network.
        example: one sample.
        seed: of the run.
        start_from: trained parameters of the same network, or of one without its newer inputs; None: random ones.
        settings: those of `training.step.make_step`.

    Raises:
        ValueError: `start_from` does not fit, see `models.growth`.
    """
    first = _first_params(functools.partial(init_params, model, example), start_from)
    train_step = step.make_step(objective, as_network(model), optimizer, seed=seed, **settings)
    return Recipe(
        lambda key, trained: step.start(first(key, trained), optimizer), (jax.random.key(seed), start_from), train_step
    )


def distilled(
    model: Any,
    method: distillation.Method,
    optimizer: Optimizer,
    example: Batch,
    teacher: TrainedRun | None,
    *,
    seed: int,
    start_from: Params | None = None,
    **settings: Any,
) -> Recipe:
    """Training a few-step student.

    Args:
        model: the student's network.
        method: how it learns.
        optimizer: of the student.
        example: one sample.
        teacher: what it learns from; None: for a method that needs none.
        seed: of the run.
        start_from: its first parameters, such as those of another student; None: the teacher's, or random ones.
        settings: those of `training.step.make_step`.

    Raises:
        ValueError: what the method needs and the student or the teacher lacks.
    """
    check_student(model, method)
    check_teacher(method, teacher)
    model = with_forward_mode(model, method)
    asked = as_network(teacher.network) if teacher else None
    networks = distillation.Networks(student=as_network(model), teacher=asked, critic=asked)
    if teacher is not None and method.judged_layers:
        networks = networks._replace(**make_judge(teacher.network, method.judged_layers))
    train_step = method.make_step(networks, optimizer, seed=seed, **settings)
    taught = teacher.params if teacher else None
    known = {"teacher": taught, "first": taught if start_from is None else start_from}
    first = _first_params(functools.partial(init_params, model, example), known["first"])

    def make_state(key: jax.Array, known: dict[str, Params | None]) -> TrainState:
        return distillation.start(method, networks, first(key, known["first"]), known["teacher"], optimizer)

    return Recipe(make_state, (jax.random.key(seed), known), train_step)


def _first_params(init: Callable[[jax.Array], Params], trained: Params | None) -> Callable[..., Params]:
    """(key, trained) -> the parameters that training starts with; refuses `trained` ones that do not fit."""
    if trained is None:
        return lambda key, trained: init(key)
    growth.check_growth(jax.eval_shape(init, jax.random.key(0)), trained)
    return lambda key, trained: growth.grow(init(key), trained)


def make_judge(network: Any, layers: int) -> dict[str, Any]:
    """A discriminator on the tokens of a frozen network after its first layers: `judge` and `init_judge` of `Networks`.

    Raises:
        ValueError: the network has not so many layers.
    """
    dit = denoiser_of(network)
    if not 1 <= layers <= dit.depth:
        raise ValueError(f"discriminator_layers={layers}: the teacher has layers 1 to {dit.depth}")
    head = discriminator.Discriminator(mlp_dim=dit.width)

    def judge(params: Params, teacher: Params, x: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        tokens = features.hidden_tokens(network, jax.lax.stop_gradient(teacher), x, t, cond, depth=layers)
        return head.apply({"params": params}, tokens)  # pyright: ignore[reportReturnType]

    return {"judge": judge, "init_judge": lambda key: head.init(key, jnp.zeros((1, 1, dit.width)))["params"]}


def check_student(model: Any, method: distillation.Method) -> None:
    """Refuses a network that cannot be this method's student.

    Raises:
        ValueError: it lacks an input, or its attention cannot be differentiated forwards.
    """
    dit = denoiser_of(model)
    if method.needs_jvp and dit.attention_implementation not in (None, *attention.FORWARD_MODE):
        able = ", ".join(sorted(attention.FORWARD_MODE))
        raise ValueError(
            f"{type(method).__name__} differentiates the network forwards, which attention "
            f"{dit.attention_implementation!r} cannot: set attention_implementation to one of {able}, or the method's "
            "difference to a short time such as 0.02"
        )
    if not dit.has_second_time:
        raise ValueError("a student reads a target time: set has_second_time=True in its DiT")
    if method.guidance.max_scale is not None and not dit.has_guidance:
        raise ValueError(
            f"guidance.max_scale={method.guidance.max_scale} makes the scale an input: set has_guidance=True in the "
            "student's DiT, or guidance.max_scale=None"
        )
    if method.guidance.max_scale is None and dit.has_guidance:
        raise ValueError("the student's DiT has has_guidance=True, but guidance.max_scale=None teaches one scale only")


def with_forward_mode(model: Any, method: distillation.Method) -> Any:
    """The network as this method trains it: where it is differentiated forwards, not by a flash kernel.

    An attention that the config names stays, and so does that of a CPU, whose default has every derivative.
    """
    dit = denoiser_of(model)
    if not method.needs_jvp or dit.attention_implementation or meshes.current_device().platform == "cpu":
        return model
    # Flash attention with a target tangent passes `jax.jvp` alone, and other losses take plain gradients as well.
    dit = dit.clone(attention_implementation="flash_jvp" if isinstance(method, distillation.MeanFlow) else "tiled")
    return dit if isinstance(model, DiT) else model.clone(dit=dit)


def check_teacher(method: distillation.Method, teacher: TrainedRun | None) -> None:
    """Refuses a teacher that lacks what the method asks it for.

    Raises:
        ValueError: no teacher where one is needed, another prediction or schedule, or no unconditional answer.
    """
    name = type(method).__name__
    if teacher is None:
        if method.needs_teacher:
            raise ValueError(f"{name} learns from a teacher: set teacher=RUN, the folder of a trained run")
        return
    objective = teacher.objective
    if (objective.prediction, objective.schedule) != (method.prediction, method.schedule):
        raise ValueError(
            f"the teacher predicts {objective.prediction} on {objective.schedule}; students are distilled from "
            f"{method.prediction} on {method.schedule}: train such a teacher"
        )
    if method.guidance.is_needed and not objective.drop_rates.text:
        raise ValueError(
            f"guidance {method.guidance} asks for the teacher's unconditional answer, which it never learnt (its "
            "objective drops no text): set guidance.scale=1, or train a teacher with drop_rates.text > 0"
        )


def denoiser_of(model: Any) -> DiT:
    """The DiT of a network.

    Raises:
        ValueError: there is none.
    """
    dit = getattr(model, "dit", model)
    if not isinstance(dit, DiT):
        raise ValueError(f"distillation trains a DiT, or a network with one; got {type(model).__name__}")
    return dit
