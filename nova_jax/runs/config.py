"""A whole training run as one value: model, objective, data, optimizer, mesh, and what is shown while it trains."""

import abc
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

from nova_jax.generation.settings import SamplingSettings
from nova_jax.models.dit import DiT
from nova_jax.models.text import encoder as text_encoders
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.parallel import mesh as meshes
from nova_jax.training import optimizer as optimizers
from nova_jax.training import profiling, tracking, watch
from nova_jax.types import Batch, Params

# What may change between two starts of one run. Everything else would make it another experiment.
CHANGEABLE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "keep",
    "mesh",
    "limits",
    "data_on_device",
    "steps_per_dispatch",
    "run_dir",
    "trackers",
    "profile",
    "tensorboard",
    "preview",
    "teacher",
    "start_from",
    "mirror",
    "data.**.max_corrupt",
    "data.**.max_pixels",
    "optimizer.peak",
    "optimizer.clip_norm",
)
SEEDS = 2**32


class OnDevice(NamedTuple):
    """Training data that fits the memory of the devices; see `runs.resident`.

    Attributes:
        table: all samples, a tree of host arrays whose first axis is samples.
        prepare: rows of the table -> a batch, on the devices.
        records: (start position, global batch size) -> for every batch which samples it holds.
    """

    table: Any
    prepare: Callable[[Any], Batch]
    records: Callable[[int, int], Iterator[list[int]]]


@runtime_checkable
class DataSource(Protocol):
    """Training data as an endless stream of batches whose position is one integer: the samples consumed.

    A source of your own is a subclass with `describe`, `fingerprint` and `batches`; the other answers are those of
    pixels in batches of one kind. Sources with more to say override them.

    Attributes:
        text_encoder: what reads the captions; None: nothing, or what is trained inside the network.
    """

    text_encoder: Any = None

    @abc.abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON-able facts for config.json: `latent_shape` and `text_length` make a run one that can be sampled from."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Changes when the samples or their order change."""

    @abc.abstractmethod
    def batches(self, start: int, batch_size: int, shard_index: int = 0, shard_count: int = 1) -> Iterator[Batch]:
        """This shard's rows of every global batch from position `start` on, as host arrays."""

    def encode(self, report: Callable[[int, int], None] | None = None) -> None:
        """Makes what has to be made once before the first batch; `report` gets the samples done, and of how many.

        Every process of a job calls it, before anything else that reads samples.
        """
        del report

    def examples(self) -> list[tuple[float, Batch]]:
        """For every kind of batch its rows over the batch size, a mean over all batches, and one sample."""
        return [(1.0, next(self.batches(0, 1)))]

    def batch_sizes(self, batch_size: int) -> tuple[int, ...]:
        """The global rows that a batch may have."""
        return (batch_size,)

    def on_device(self) -> OnDevice | None:
        """The same stream of batches as `batches`, to be held on the devices; None: it has to be made on the host."""
        return None

    def codec(self) -> tuple[Any, Params] | None:
        """The autoencoder whose latents these are, with its parameters; None when x0 is pixels."""
        return None

    def with_text_encoder(self, encoder: TextEncoder) -> "DataSource":
        """The same data, its captions read by the encoder that is trained inside the network."""
        del encoder
        return self

    def scorer(self, per_task: int) -> Any:
        """What scores images sampled for prompts of its own, `per_task` of each kind; None: nothing does."""
        del per_task

    def exam(self, per_task: int) -> Any:
        """An `evaluation.exam.Exam` with `per_task` questions a part; None: there is none."""
        del per_task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preview:
    """Images drawn during training, one row of seeds per prompt, into `samples/` of the run folder."""

    every: int = 500
    prompts: tuple[str, ...] = ()
    per_prompt: int = 2
    settings: SamplingSettings = SamplingSettings(sampler="euler", num_steps=20)
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
        limits: how long anything may take before the run ends rather than waits; see `training.watch`.
        batch_size: global.
        data_on_device: hold the training data in the memory of the devices; see `runs.resident`.
        steps_per_dispatch: steps that the host starts at once, with `data_on_device`.
        accumulate: parts that a batch is processed in, to save memory.
        ema_decay: of the averaged parameters, which are the ones sampled from.
        keep: newest checkpoints kept.
        trackers: services that show the scalars while it trains; see `training.tracking`.
        profile: "START:STOP", steps to trace; see `training.profiling`.
        preview: sample grids during training; needs a text-to-image network.
        teacher: run folder that a distillation method learns from, and starts from unless told otherwise.
        mirror: URL of a folder, such as gs://bucket/runs/NAME, that the run folder is copied to with every checkpoint;
            a run that is not here is fetched from there, and goes on. See `runs.mirror`.
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
    limits: watch.Limits = watch.Limits()
    data_on_device: bool = False
    steps_per_dispatch: int = 1
    accumulate: int = 1
    ema_decay: float = 0.999
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    preview: Preview | None = None
    run_dir: str | None = None
    trackers: tuple[str, ...] = ()
    profile: str | None = None
    tensorboard: bool = False  # the earlier form of trackers=("tensorboard",)
    teacher: str | None = None
    start_from: str | None = None
    mirror: str | None = None

    def __post_init__(self) -> None:
        _check_least(self, steps=0, batch_size=1, accumulate=1, seed=0, log_every=1, checkpoint_every=1, keep=1)
        _check_least(self, steps_per_dispatch=1)
        if self.steps_per_dispatch > 1 and not self.data_on_device:
            raise ValueError(
                f"steps_per_dispatch={self.steps_per_dispatch} needs data_on_device=True: batches that the host makes "
                "are sent one a step"
            )
        if self.seed >= SEEDS:
            raise ValueError(f"seed is {self.seed}; it must be a whole number from 0 to {SEEDS - 1:,}")
        for name in self.trackers:
            tracking.check(name)
        if self.profile is not None:
            profiling.parse(self.profile)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}; it must lie in [0, 1), and 0 keeps the newest parameters")
        folders = {name: getattr(self, name) for name in ("run_dir", "teacher", "start_from")}
        for name, path in (folders | {"data.cache_path": getattr(self.data, "cache_path", None)}).items():
            if path and "://" in str(path):
                raise ValueError(
                    f"{name} is {path}; it must be a path, since files of a run are locked, appended to and renamed: "
                    "keep a copy of the run there with mirror=URL, or mount the bucket, as with gcsfuse or mount-s3, "
                    "and give the folder where it is mounted"
                )

    @property
    def directory(self) -> pathlib.Path:
        """The run folder."""
        return pathlib.Path(self.run_dir or f"runs/{self.name}")


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
    named, denoiser = config.data.text_encoder, config.model
    if named is not None and isinstance(denoiser, DiT) and denoiser.text_dim != named.width:
        raise ValueError(
            f"the denoiser reads text states of width text_dim={denoiser.text_dim} and {named} gives {named.width}: "
            f"set model.text_dim={named.width}"
        )
    return config
