"""An experiment: where model, objective, data, mesh and loop meet.

An experiment file is a `TrainConfig` and ends in `main(CONFIG)`:

    python -m experiments.NAME --print                    shows the resolved config and stops
    python -m experiments.NAME steps=1000 mesh.fsdp=8     changes values by dotted paths

The run folder holds everything: `config.json` (resolved, with versions and devices), `log.jsonl`, `events.jsonl`,
`checkpoints/`, `codec/`, `samples/`. Running the same command again resumes it; with more `steps` it goes on.
A learning rate that falls reaches zero with the last step, so that of a finished run rises again when it goes on.
"""

import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from nova_jax import config as configs
from nova_jax import distillation, environment, inference, recipe, weights
from nova_jax.config import ConfigError
from nova_jax.models import flops
from nova_jax.models.dit import DiT
from nova_jax.models.text import encoder as text_encoders
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import record as records
from nova_jax.training import checkpoint, lock, logging, loop, step
from nova_jax.training import optimizer as optimizers
from nova_jax.types import Batch, Params, TrainState

# What may change between two starts of one run. Everything else would make it another experiment.
CHANGEABLE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "keep",
    "mesh",
    "run_dir",
    "tensorboard",
    "preview",
    "teacher",
    "start_from",
    "data.**.max_corrupt",
    "data.**.max_pixels",
    "optimizer.peak",
    "optimizer.clip_norm",
)
SEEDS = 2**32
CHECKPOINTS = "checkpoints"


@runtime_checkable
class DataSource(Protocol):
    """Training data as an endless stream of batches whose position is one integer: the samples consumed."""

    def describe(self) -> dict[str, Any]:
        """JSON-able facts for config.json: `latent_shape` and `text_length` make a run one that can be drawn from."""
        ...

    def with_text_encoder(self, encoder: TextEncoder) -> "DataSource":
        """The same data, its captions read by the encoder that is trained inside the network."""
        ...

    def example(self) -> Batch:
        """One sample, with the shapes and dtypes of training; where they differ, `examples()` gives each kind."""
        ...

    def fingerprint(self) -> str:
        """Changes when the samples or their order change."""
        ...

    def codec(self) -> tuple[Any, Params] | None:
        """The autoencoder whose latents these are, with its parameters; None when x0 is pixels."""
        ...

    def batches(self, start: int, batch_size: int, shard_index: int, shard_count: int) -> Iterator[Batch]:
        """This shard's rows of every global batch from position `start` on, as host arrays."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """Pictures drawn during training, one row of seeds per prompt, into `samples/` of the run folder."""

    every: int = 500
    prompts: tuple[str, ...] = ()
    per_prompt: int = 2
    settings: inference.SamplingSettings = inference.SamplingSettings(sampler="euler", num_steps=20)
    upscale: int = 3

    def __post_init__(self) -> None:
        _check_least(self, every=1, per_prompt=1, upscale=1)


def _check_least(config: Any, **least: int) -> None:
    """Refuses a field below its least value.

    Raises:
        ValueError: the field, its value, and what is allowed.
    """
    for name, low in least.items():
        if getattr(config, name) < low:
            raise ValueError(f"{name} is {getattr(config, name)}; it must be a whole number of {low} or more")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A whole training run. Components are values; swap them in Python, change their fields by `override`.

    Attributes:
        name: of the experiment; its run folder is runs/NAME unless `run_dir` says otherwise.
        model: a Linen module called with (x, t, cond), or a `models.vae.VAE`.
        objective: (network, params, batch, key) -> (loss, metrics), or a distillation method.
        data: a `DataSource`.
        optimizer: see `training.optimizer`.
        mesh: axis sizes; the default replicates over all devices.
        batch_size: global.
        accumulate: parts that a batch is processed in, to save memory.
        ema_decay: of the averaged parameters, which are the ones sampled from.
        keep: newest checkpoints kept.
        preview: sample grids during training; needs a text-to-image network.
        teacher: run folder that a distillation method learns from, and starts from unless told otherwise.
        start_from: run folder whose averaged parameters are the first ones; the network may have new inputs, or time.
    """

    name: str
    model: Any
    objective: Any
    data: Any
    optimizer: optimizers.Optimizer
    steps: int
    batch_size: int
    mesh: meshes.MeshConfig = meshes.MeshConfig()
    accumulate: int = 1
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    preview: Preview | None = None
    run_dir: str | None = None
    tensorboard: bool = False
    teacher: str | None = None
    start_from: str | None = None

    def __post_init__(self) -> None:
        _check_least(self, steps=0, batch_size=1, accumulate=1, seed=0, log_every=1, checkpoint_every=1, keep=1)
        if self.seed >= SEEDS:
            raise ValueError(f"seed is {self.seed}; it must be a whole number from 0 to {SEEDS - 1:,}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1), and 0 keeps the newest parameters")

    @property
    def directory(self) -> pathlib.Path:
        """The run folder."""
        return pathlib.Path(self.run_dir or f"runs/{self.name}")


class Result(NamedTuple):
    """A finished run: its last state (on disk as well) and its folder."""

    state: TrainState
    directory: pathlib.Path


def run(config: TrainConfig, callbacks: Sequence[loop.Callback] = ()) -> Result:
    """Trains, or goes on training, what `config` describes.

    Raises:
        ValueError: the batch does not fit the mesh, the mesh not the devices, or the codec not the network.
        ConfigError: the run folder belongs to another experiment; the differences are listed.
        RunLocked, CheckpointError, NonFiniteLoss, SystemExit(75): see `training`.
    """
    distributed.initialize()
    distributed.check_devices()
    config = with_schedule(with_text_encoder(configs.expand_home(config)))
    devices = config.mesh.make()
    for size in _batch_sizes(config):
        meshes.check_batch_size(devices, size, config.accumulate)
    with lock.RunLock(config.directory):
        _check_channels(config)
        record = _record(config)
        notes: list[str] = []
        if distributed.is_main():
            notes = _write_record(config, record)
            _write_codec(config)
        distributed.barrier("nova_jax run folder")
        with jax.set_mesh(devices):
            return Result(_train(config, devices, record, callbacks, notes), config.directory)


def with_schedule(config: TrainConfig) -> TrainConfig:
    """The config whose learning rate falls to zero with the last step, unless the optimizer names another one.

    Raises:
        ValueError: the optimizer's schedule ends before the run does.
    """
    return dataclasses.replace(config, optimizer=config.optimizer.ending_at(config.steps))


def with_text_encoder(config: TrainConfig) -> TrainConfig:
    """The config whose data reads captions as the network's own text encoder does; as it is where there is none.

    Raises:
        ValueError: the data names another encoder, or one whose states the denoiser does not read.
    """
    encoder = text_encoders.find(config.model)
    if encoder is not None:
        return dataclasses.replace(config, data=config.data.with_text_encoder(encoder))
    named, denoiser = getattr(config.data, "text_encoder", None), config.model
    if named is not None and isinstance(denoiser, DiT) and denoiser.text_dim != named.width:
        raise ValueError(
            f"the denoiser reads text states of width text_dim={denoiser.text_dim} and {named} gives {named.width}: "
            f"set model.text_dim={named.width}"
        )
    return config


def _train(
    config: TrainConfig, devices: Any, record: dict[str, Any], callbacks: Sequence[loop.Callback], notes: Sequence[str]
) -> TrainState:
    """Restores or initialises the state, then hands it to the loop."""
    made = _recipe(config)
    metadata = {"data": config.data.fingerprint()}
    throughput = logging.Throughput(record["samples_per_step"], record["flops_per_step"], record["peak_flops"])
    folder = config.directory
    with checkpoint.Checkpoints(folder / CHECKPOINTS, keep=config.keep, metadata=metadata) as checkpoints:
        restored = checkpoints.restore(step.plan(made.make_state, *made.arguments, mesh=devices))
        first = restored.step if restored else 0
        with logging.RunLog(
            folder, throughput, total_steps=config.steps, start_step=first, tensorboard=config.tensorboard
        ) as log:
            state = _start(config, restored, made, devices, log)
            for note in notes:
                log.event(note)
            if first >= config.steps:
                return state
            return loop.fit(
                state,
                made.train_step,
                functools.partial(_global_batches, config, meshes.batch_sharding(devices)),
                loop=loop.Loop(
                    steps=config.steps,
                    batch_size=config.batch_size,
                    log_every=config.log_every,
                    checkpoint_every=config.checkpoint_every,
                ),
                checkpoints=checkpoints,
                log=log,
                position=restored.metadata["position"] if restored else 0,
                callbacks=(*callbacks, *_previews(config)),
            )


def _recipe(config: TrainConfig) -> recipe.Recipe:
    """How the config's objective, or its distillation method, trains the config's model."""
    settings = {"ema_decay": config.ema_decay, "accumulate": config.accumulate, "seed": config.seed}
    settings["start_from"] = recipe.trained_params(config.model, config.start_from) if config.start_from else None
    example = config.data.example()
    if not isinstance(config.objective, distillation.Method):
        return recipe.plain(config.model, config.objective, config.optimizer, example, **settings)
    teacher = inference.load_run(config.teacher) if config.teacher else None
    return recipe.distilled(config.model, config.objective, config.optimizer, example, teacher, **settings)


def _start(
    config: TrainConfig, restored: checkpoint.Restored | None, made: recipe.Recipe, devices: Any, log: logging.RunLog
) -> TrainState:
    """The restored state, or a new one; says which."""
    if restored is None:
        log.event(f"{config.name}: started in {config.directory}, {config.steps} steps of {config.batch_size}")
        return step.build(made.make_state, *made.arguments, mesh=devices)
    for note in restored.notes:
        log.event(note)
    if restored.metadata["data"] != config.data.fingerprint():
        raise ConfigError(
            f"{config.directory}: the data changed since step {restored.step} was saved, so the run would not continue "
            "but become another one: restore the data, or choose another run_dir (also where an earlier version, which "
            "did not look at files whole, saved it)"
        )
    log.event(f"{config.name}: resumed at step {restored.step} of {config.steps}", step=restored.step)
    return restored.state


def _global_batches(config: TrainConfig, sharding: Any, start: int) -> Iterator[Batch]:
    """Device-ready batches: this process's rows, joined with those of the others."""
    (index, count), sizes = distributed.data_shard(sharding, config.batch_size), _batch_sizes(config)
    for rows in config.data.batches(start, config.batch_size, index, count):
        size = count * len(rows.x0)
        if size not in sizes:
            raise ValueError(f"the data gave {len(rows.x0)} rows to each of {count} shards, not {sizes} in all")
        yield distributed.global_batch(rows, sharding, size)


def _batch_sizes(config: TrainConfig) -> tuple[int, ...]:
    """The global rows that a batch may have: one number, or one for each part of a mixture."""
    size = config.batch_size
    return config.data.batch_sizes(size) if hasattr(config.data, "batch_sizes") else (size,)


def _examples(config: TrainConfig) -> list[tuple[float, Batch]]:
    """A sample of every kind of batch, and its rows over the batch size, a mean over all batches."""
    return config.data.examples() if hasattr(config.data, "examples") else [(1.0, config.data.example())]


def _record(config: TrainConfig) -> dict[str, Any]:
    """What config.json says: the resolved config, what it means in parameters and FLOPs, and where it runs."""
    example = config.data.example()
    shapes = jax.eval_shape(functools.partial(recipe.init_params, config.model, example), jax.random.key(0))
    peak, source = environment.peak_flops()
    return {
        "config": configs.to_dict(config),
        "data": config.data.describe(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "samples_per_step": round(config.batch_size * sum(rows for rows, _ in _examples(config))),
        "flops_per_step": flops_per_step(config, example),
        "flops_formula": "closed form of models/flops.py times the forward passes of a step: three, or its method's"
        if hasattr(config.model, "flops")
        else "XLA's count of the unoptimised step",
        "peak_flops": peak,
        "peak_source": source,
        "environment": environment.describe(),
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def forward_flops(model: Any, batch: Batch) -> float:
    """Model FLOPs of one sample's forward pass, with the conditions that the batch shows."""
    cond = batch.cond
    text = cond.text_ids if cond.text_ids is not None else cond.text
    length = 0 if text is None else text.shape[1]
    frames = 0 if cond.frames is None else cond.frames.shape[1]
    extra_text = (0 if cond.palette is None else cond.palette.shape[1]) + (cond.task is not None)
    return float(model.flops(tuple(batch.x0.shape[1:4]), length, frames, extra_text))


def flops_per_step(config: TrainConfig, example: Batch) -> float | None:
    """Model FLOPs of a training step: closed form for transformers, XLA's count for an autoencoder (no scan).

    None where XLA does not count. Of data in parts of several shapes or sizes (`data_pipelines.mixture`) the mean.
    """
    if hasattr(config.model, "flops"):
        forward = sum(rows * forward_flops(config.model, batch) for rows, batch in _examples(config))
        if isinstance(config.objective, distillation.Method):
            return config.objective.forwards * forward * config.batch_size
        return flops.train_step_flops(forward, config.batch_size)
    params = jax.eval_shape(functools.partial(recipe.init_params, config.model, example), jax.random.key(0))

    def loss(params: Params, key: jax.Array) -> Any:
        loss, _ = config.objective(recipe.as_network(config.model), params, example, key)
        return loss

    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # where XLA counts; not on every GPU
        cost: Any = jax.jit(jax.grad(loss)).lower(params, jax.random.key(0)).cost_analysis()
    return float(cost["flops"]) * config.batch_size / example.x0.shape[0] if cost else None


def _write_record(config: TrainConfig, record: dict[str, Any]) -> list[str]:
    """Writes config.json, after checking that the folder belongs to this experiment; returns what is to be said."""
    path, notes = config.directory / records.FILE, []
    if path.is_file():
        before = records.completed(records.read(config.directory)["config"])
        notes = _follow_steps(before, config)
        notes += records.differences(before["optimizer"], record["config"]["optimizer"], path="optimizer")
        if differences := records.differences(before, record["config"], CHANGEABLE):
            raise ConfigError(
                f"{config.directory} belongs to a run with another config: {'; '.join(differences)}. Give the values "
                "it was started with, or another run_dir"
            )
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=1) + "\n")
    partial.replace(path)
    return notes


def _follow_steps(saved: dict[str, Any], config: TrainConfig) -> list[str]:
    """Moves the end of a saved schedule that ended with its run to the new end of the run; says so where it moves."""
    rates, end = saved["optimizer"], config.optimizer.total_steps
    if rates["total_steps"] != saved["steps"] or end != config.steps or end == rates["total_steps"]:
        return []
    rates["total_steps"] = end
    return [f"steps was {saved['steps']} and is {end}: the {config.optimizer.schedule} schedule now ends there"]


def _check_channels(config: TrainConfig) -> None:
    """The network must read what the codec writes."""
    codec = config.data.codec()
    denoiser = getattr(config.model, "dit", config.model)
    if codec is None or not hasattr(denoiser, "in_channels"):
        return
    if denoiser.in_channels != codec[0].latent_channels:
        raise ValueError(
            f"the network reads {denoiser.in_channels} channels but the autoencoder's latents have "
            f"{codec[0].latent_channels}: set in_channels={codec[0].latent_channels}, or use another autoencoder"
        )


def _write_codec(config: TrainConfig) -> None:
    """Copies the autoencoder into the run folder, so that the folder alone can draw."""
    codec = config.data.codec()
    folder = config.directory / inference.CODEC_FOLDER
    if codec is not None and not folder.exists():
        module, params = codec
        weights.save(module, params, folder)


def make_trained_run(config: TrainConfig) -> Callable[[int, TrainState], inference.TrainedRun]:
    """(step, state) -> what draws from the EMA parameters of a run in training, for callbacks.

    Raises:
        ValueError: the run does not draw: its data has no autoencoder.
    """
    config = with_text_encoder(configs.expand_home(config))
    codec = config.data.codec()
    if codec is None:
        raise ValueError(f"{config.name} trains on pixels, without an autoencoder to draw through")
    shape = tuple(config.data.describe()["latent_shape"])
    encoder = config.data.text_encoder

    def make(step: int, state: TrainState) -> inference.TrainedRun:
        return inference.TrainedRun(
            network=config.model,
            params=state.ema,
            objective=config.objective,
            codec=codec[0],
            codec_params=codec[1],
            latent_shape=shape,
            text_encoder=encoder,
            step=step,
        )

    return make


def _previews(config: TrainConfig) -> list[loop.Callback]:
    """Draws the preview's prompts from the EMA parameters."""
    preview = config.preview
    if preview is None or not preview.prompts or config.data.codec() is None:
        return []
    make = make_trained_run(config)
    inference.check_prompts(config.data.text_encoder, preview.prompts)

    def draw(at: int, state: TrainState) -> None:
        trained = make(at, state)
        prompts = [prompt for prompt in preview.prompts for _ in range(preview.per_prompt)]
        seeds = list(range(preview.per_prompt)) * len(preview.prompts)
        pixels = inference.generate(trained, prompts, seeds, preview.settings)
        if distributed.is_main():
            path = config.directory / "samples" / f"{at:08d}.png"
            inference.save_grid(path, pixels, columns=preview.per_prompt * 4, upscale=preview.upscale)

    return [loop.Callback(preview.every, draw)]


def main(
    config: TrainConfig,
    then: Callable[[TrainConfig, Result], object] | None = None,
    prepare: Callable[[TrainConfig], TrainConfig] | None = None,
) -> None:
    """The command line of an experiment: overrides, `--print`, errors in one sentence.

    Args:
        config: the experiment's CONFIG.
        then: what to do with the finished run, such as scoring it and writing its report.
        prepare: a last change to the config before the run, such as training the autoencoder it needs.
    """
    arguments = sys.argv[1:]
    try:
        config = configs.override(config, [text for text in arguments if text != "--print"])
        if "--print" in arguments:
            print(json.dumps(configs.to_dict(with_schedule(config)), indent=2))
            return
        config = prepare(config) if prepare else config
        result = run(config)
        if then is not None:
            then(config, result)
    except loop.NonFiniteLoss as error:
        sys.exit(f"{config.name}: {error} {_advise(config, error)}")
    except (ValueError, OSError, ImportError, lock.RunLocked, checkpoint.CheckpointError) as error:
        sys.exit(f"{config.name}: {error}")


def _advise(config: TrainConfig, error: loop.NonFiniteLoss) -> str:
    """What to type after a loss that is not finite; nothing where the run was not this one, but one before it."""
    if error.directory != (config.directory / CHECKPOINTS).absolute():
        return f"It is a run that {config.name} needs first, whose optimizer is set in Python."
    return f"Run the same command again with optimizer.peak={config.optimizer.peak / 2:g}: half of what it was."
