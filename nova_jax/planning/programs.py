"""The programs of an experiment without its data: a training step, and an evaluation of guided sampling.

An experiment is a module with a `CONFIG`, or the name of a preset of `models.presets`: then flow matching with AdamW in
bfloat16 on latents and captions of which only the shapes are known.
"""

import dataclasses
import functools
import importlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from nova_jax import config as configs
from nova_jax import distillation
from nova_jax.diffusion import FlowMatching
from nova_jax.generation import program as generation
from nova_jax.models import presets, text_keys
from nova_jax.models.text import encoder as text_encoders
from nova_jax.parallel import mesh as meshes
from nova_jax.parallel import rules
from nova_jax.runs import build
from nova_jax.runs.config import DataSource, TrainConfig, with_schedule, with_text_encoder
from nova_jax.training import optimizer, step
from nova_jax.types import Batch, Conditioning, TrainState

IMAGE, VIDEO = (32, 32), (81, 480, 832)  # latents of an image of 256 pixels; a clip of Wan 2.1 in pixels
SCALE = 4.0  # of guidance; its value changes nothing but whether there are two answers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shapes(DataSource):
    """Data of which only shapes are known.

    Attributes:
        latent_shape: (f, h, w, c) of a sample.
        text_length: states of a caption.
        text_encoder: none: the states are given.
    """

    latent_shape: tuple[int, int, int, int]
    text_length: int
    text_encoder: Any = None

    def describe(self) -> dict[str, Any]:
        """Both shapes."""
        return {"latent_shape": list(self.latent_shape), "text_length": self.text_length}

    def fingerprint(self) -> str:
        """That of nothing."""
        return ""

    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """None."""
        del start, batch_size, shard_index, shard_count
        return iter(())


def find(name: str, assignments: Sequence[str] = ()) -> TrainConfig:
    """The config of an experiment, or of a preset, with fields changed by `path=value`.

    Raises:
        ValueError: neither; fields that do not exist; an experiment whose data or objective cannot be planned with.
        ImportError: the module needs what is not installed.
    """
    config = preset(name) if name in presets.DIT else _experiment(name)
    config = with_schedule(with_text_encoder(configs.expand_home(configs.override(config, assignments))))
    if isinstance(config.objective, distillation.Method):
        raise ValueError(f"{name} distils a teacher: plan the training of its network instead")
    return config


def preset(name: str) -> TrainConfig:
    """Flow matching of a transformer of `models.presets`: on images, or with the Wan models on clips of 81 frames."""
    dit, is_video = presets.dit(name, dtype=jnp.bfloat16), name.startswith("wan")
    vae = "wan2.2" if dit.in_channels == 48 else "wan2.1"
    latents = presets.vae(vae).latent_shape(*VIDEO) if is_video else (1, *IMAGE, dit.in_channels)
    return TrainConfig(
        name=name,
        model=dit,
        objective=FlowMatching(),
        data=Shapes(latent_shape=latents, text_length=512 if is_video else 32),
        optimizer=optimizer.AdamW(),
        steps=1,
        batch_size=8 if is_video else 256,
    )


def _experiment(name: str) -> TrainConfig:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith(str(error.name)):
            raise
        known = ", ".join(presets.DIT)
        text = f"there is no experiment {name!r}: give a module, as experiments.quickstart, or one of {known}"
        raise ValueError(text) from None
    config = getattr(module, "CONFIG", None)
    if not isinstance(config, TrainConfig):
        raise ValueError(f"{name} has no CONFIG of a training run")
    if not isinstance(config.data, DataSource):
        raise ValueError(f"the data of {name} is only made when it starts; plan one of {', '.join(presets.DIT)}")
    return config


def make_example(config: TrainConfig) -> Batch:
    """One sample of zeros: of latents and captions as the data describes them, else a sample of the data itself."""
    facts = config.data.describe()
    denoiser = getattr(config.model, "dit", config.model)
    reads_more = any(getattr(denoiser, name, 0) for name in ("aligned_channels", "has_palette", "num_tasks"))
    if reads_more or not {"latent_shape", "text_length"} <= facts.keys() or not hasattr(denoiser, "text_dim"):
        return jax.tree.map(jnp.asarray, config.data.examples()[0][1])
    x0, length = jnp.zeros((1, *facts["latent_shape"])), facts["text_length"]
    encoder = text_encoders.find(config.model)
    if encoder is not None:
        ids, mask = map(jnp.asarray, encoder.null(1))
        return Batch(x0, Conditioning(text_ids=ids, text_mask=mask))
    mask = jnp.ones((1, length), bool) if denoiser.masks_text else None
    return Batch(x0, Conditioning(text=jnp.zeros((1, length, denoiser.text_dim)), text_mask=mask))


def plan_state(config: TrainConfig, example: Batch, mesh: Mesh) -> tuple[TrainState, Any]:
    """Shapes and places of the training state on a mesh, and the step."""
    settings = {"ema_decay": config.ema_decay, "accumulate": config.accumulate, "seed": config.seed}
    made = build.plain(config.model, config.objective, config.optimizer, example, **settings)
    with jax.set_mesh(mesh):
        return step.plan(made.make_state, *made.arguments, mesh=mesh), made.train_step


def lower_training(config: TrainConfig, example: Batch, mesh: Mesh) -> Any:
    """The training step of a batch, ready to be compiled.

    Raises:
        ValueError: the batch does not divide over the mesh.
    """
    meshes.check_batch_size(mesh, config.batch_size, config.accumulate)
    state, train_step = plan_state(config, example, mesh)
    with jax.set_mesh(mesh):
        return train_step.lower(state, _rows(example, config.batch_size, mesh))


def lower_evaluation(config: TrainConfig, example: Batch, mesh: Mesh, samples: int) -> Any:
    """One evaluation of guided sampling, (params, x, t, cond, null) -> Denoised, ready to be compiled.

    Text is encoded, and its keys are made, before: a sampler does that once for all its steps, and keeps the weights.
    """
    network, objective = config.model, config.objective
    init = functools.partial(build.init_params, network, example)
    params = jax.eval_shape(init, jax.random.key(0))
    cond = jax.eval_shape(functools.partial(_encode, network), params, example.cond)
    rows = _rows(Batch(example.x0, cond), samples, mesh)

    def evaluate(params: Any, x: Any, t: Any, cond: Conditioning, null: Conditioning) -> Any:
        denoise = generation.make_denoiser(network, params, objective, null, "guided", SCALE, None)
        return denoise(x, t, cond)

    with jax.set_mesh(mesh):
        placed = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), params, rules.shardings(params, mesh)
        )
        time = jax.ShapeDtypeStruct((samples,), jnp.float32)
        return jax.jit(evaluate, keep_unused=True).lower(placed, rows.x0, time, rows.cond, rows.cond)


def _encode(network: Any, params: Any, cond: Conditioning) -> Conditioning:
    if hasattr(network, "encode_text"):
        cond = network.apply({"params": params}, cond, method="encode_text")
    return text_keys.with_text_keys(network, params, cond)


def _rows(example: Any, count: int, mesh: Mesh) -> Any:
    """Shapes of so many samples, cut over data and fsdp as far as these divide them."""
    rows = meshes.fitting_axes(count, meshes.BATCH_AXES, mesh.shape)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(rows))
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape[1:]), a.dtype, sharding=place), example)
