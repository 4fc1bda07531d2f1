"""Training a run: its folder, its record, its state, and the loop; running it again resumes it."""

import functools
import json
import pathlib
import secrets
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from nova_jax import atomic, compilation_cache, conditions, distillation, environment, weights
from nova_jax import config as configs
from nova_jax.config import ConfigError
from nova_jax.models import flops
from nova_jax.parallel import constrain, context, distributed, rules
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import build, load, mirror, preview, resident
from nova_jax.runs import record as records
from nova_jax.runs.config import CHANGEABLE, TrainConfig, with_schedule, with_text_encoder
from nova_jax.training import checkpoint, goodput, lock, logging, loop, step, watch
from nova_jax.types import Batch, Params, TrainState, TrainStep

CHECKPOINTS = "checkpoints"
SHARED_SECONDS = 10.0  # that a file of process 0 may take until the others see it


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
    distributed.initialize(heartbeat_seconds=2 * config.limits.heartbeat, join_seconds=config.limits.join)
    clock = goodput.Clock()
    with watch.Watch(config.limits) as watching:
        watch.phase("looking for devices")
        distributed.check_devices()
        config = with_schedule(with_text_encoder(configs.expand_home(config)))
        devices = config.mesh.make()
        for size in config.data.batch_sizes(config.batch_size):
            meshes.check_batch_size(devices, size, config.accumulate)
        with lock.RunLock(config.directory), compilation_cache.kept_in(config.directory):
            watching.report = functools.partial(logging.add_event, config.directory)
            _check_shared(config)
            _check_channels(config)
            watch.phase("encoding")
            config.data.encode(logging.Progress("encoded"))
            watch.phase("reading the data")
            record = _record(config)
            notes: list[str] = []
            if distributed.is_main():
                _fetch(config)
                notes = _write_record(config, record)
                _write_codec(config)
            distributed.barrier("nova_jax run folder")
            with jax.set_mesh(devices):
                state = _train(config, devices, record, callbacks, notes, clock)
            if config.mirror and distributed.is_main():
                mirror.push(config.directory, config.mirror)  # with the last lines of the log
            return Result(state, config.directory)


def compile_step(config: TrainConfig) -> None:
    """Compiles the training step of a run for the devices here, into the cache of its folder, where `run` finds it.

    Raises:
        ValueError, ConfigError: see `run`.
    """
    config = with_schedule(with_text_encoder(configs.expand_home(config)))
    devices = config.mesh.make()
    rows = meshes.batch_sharding(devices)
    with compilation_cache.kept_in(config.directory), jax.set_mesh(devices):
        made = _recipe(config)
        state = step.plan(made.make_state, *made.arguments, mesh=devices)
        train_step: Any = made.train_step
        for size, (_, example) in zip(config.data.batch_sizes(config.batch_size), config.data.examples(), strict=True):
            form = lambda a, size=size: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype, sharding=rows)  # noqa: E731
            train_step.lower(state, jax.tree.map(form, example)).compile()


def _check_shared(config: TrainConfig) -> None:
    """Refuses processes that do not share the run folder, or were given other configs.

    Process 0 writes its config there, under a name that nobody knows before, and the others read it.
    """
    if jax.process_count() == 1:
        return
    watch.phase("comparing the processes")
    mine = configs.to_dict(config)
    path = config.directory.absolute() / f".{distributed.gather('run folder', secrets.token_hex(8))[0]}.json"
    if distributed.is_main():
        atomic.write(path, json.dumps(mine))
    distributed.barrier("nova_jax shared folder")
    end = time.monotonic() + SHARED_SECONDS
    while not path.is_file() and time.monotonic() < end:  # a network file system may show it late
        time.sleep(0.1)
    if not path.is_file():
        fault = f"{socket.gethostname()} sees another folder at {path.parent}: give all a run_dir that they share"
    else:
        fault = "; ".join(records.differences(json.loads(path.read_text()), mine))
    faults = {k: fault for k, fault in enumerate(distributed.gather("run folder", fault)) if fault}
    path.unlink(missing_ok=True)
    if faults:
        k, fault = next(iter(faults.items()))
        raise ConfigError(f"process {k} of {jax.process_count()} does not train the run of process 0: {fault}")


def _fetch(config: TrainConfig) -> None:
    """Takes a run that is not here from its copy in a bucket, if there is one."""
    if config.mirror and not (config.directory / records.FILE).is_file() and mirror.holds_run(config.mirror):
        watch.phase("fetching the run")
        mirror.fetch(config.mirror, config.directory)
        logging.add_event(config.directory, f"{config.name}: fetched from {config.mirror}")


def _push(config: TrainConfig) -> None:
    """Copies what the last checkpoint added to the bucket, if the run has one."""
    if not config.mirror:
        return
    try:
        mirror.push(config.directory, config.mirror)
    except Exception as error:  # each store has its own; training goes on, and the next checkpoint copies both
        logging.add_event(config.directory, f"{config.mirror} was not written to; the next checkpoint tries: {error}")


def _train(
    config: TrainConfig,
    devices: Any,
    record: dict[str, Any],
    callbacks: Sequence[loop.Callback],
    notes: Sequence[str],
    clock: goodput.Clock,
) -> TrainState:
    """Restores or initialises the state, then hands it to the loop."""
    watch.phase("restoring or making the state")
    made = _recipe(config)
    key, trained = made.arguments  # parameters of other runs, which every process has read
    made = made._replace(arguments=(key, distributed.spread(trained, rules.shardings(trained, devices))))
    metadata = {"data": config.data.fingerprint()}
    throughput = logging.Throughput(record["samples_per_step"], record["flops_per_step"], record["peak_flops"])
    folder = config.directory
    committed = functools.partial(_push, config)
    with checkpoint.Checkpoints(
        folder / CHECKPOINTS, keep=config.keep, metadata=metadata, committed=committed
    ) as checkpoints:
        with constrain.noting() as misfits:
            planned = step.plan(made.make_state, *made.arguments, mesh=devices)
        misfits += rules.misfits(planned.params, devices)
        restored = checkpoints.restore(planned)
        first = restored.step if restored else 0
        trackers = dict.fromkeys((*config.trackers, *["tensorboard"] * config.tensorboard))
        with logging.RunLog(
            folder, throughput, total_steps=config.steps, start_step=first, trackers=[*trackers], clock=clock
        ) as log:
            checkpoints.metadata["origins"] = restored.metadata.get("origins", {}) if restored else _origins(config)
            state = _start(config, restored, made, devices, log)
            denoiser = getattr(config.model, "dit", config.model)
            heads, width = (getattr(denoiser, name, None) for name in ("num_heads", "ulysses_degree"))
            for note in (*notes, *misfits, *context.notes(heads, devices, width)):
                log.event(note)
            if first >= config.steps:
                return state
            train_step, batches = _stream(config, devices, made.train_step)
            return loop.fit(
                state,
                train_step,
                batches,
                loop=loop.Loop(
                    steps=config.steps,
                    batch_size=config.batch_size,
                    log_every=config.log_every,
                    checkpoint_every=config.checkpoint_every,
                    steps_per_dispatch=config.steps_per_dispatch,
                    profile=config.profile,
                ),
                checkpoints=checkpoints,
                log=log,
                position=restored.metadata["position"] if restored else 0,
                callbacks=(*callbacks, *preview.callbacks(config)),
            )


def _stream(config: TrainConfig, devices: Any, train_step: TrainStep) -> tuple[TrainStep, Callable[[int], Any]]:
    """The step that the loop is handed, and what that reads, from a position on: batches, or which samples they hold.

    Raises:
        ConfigError: the data cannot be held on the devices.
    """
    if not config.data_on_device:
        return train_step, functools.partial(_global_batches, config, meshes.batch_sharding(devices))
    data = config.data.on_device()
    if data is None:
        raise ConfigError(
            f"data_on_device=True, but the batches of this {type(config.data).__name__} are made on the host: it takes "
            "captioned latents or images that are in memory, without random transforms; leave data_on_device out"
        )
    table, count = resident.place(data.table, devices), config.steps_per_dispatch
    step_of_rows = resident.make_step(train_step, data, table, count)
    return step_of_rows, resident.batches(data, devices, config.batch_size, count)


def _recipe(config: TrainConfig) -> build.Recipe:
    """How the config's objective, or its distillation method, trains the config's model."""
    settings = {"ema_decay": config.ema_decay, "accumulate": config.accumulate, "seed": config.seed}
    settings["start_from"] = build.trained_params(config.model, config.start_from) if config.start_from else None
    example = config.data.examples()[0][1]
    if not isinstance(config.objective, distillation.Method):
        return build.plain(config.model, config.objective, config.optimizer, example, **settings)
    teacher = load.load_run(config.teacher) if config.teacher else None
    return build.distilled(config.model, config.objective, config.optimizer, example, teacher, **settings)


def _origins(config: TrainConfig) -> dict[str, Any]:
    """The checkpoints of other runs that this one begins with, to be kept with its own."""
    runs = {"start_from": config.start_from, "teacher": config.teacher} if distributed.is_main() else {}
    found = {name: checkpoint.origin(pathlib.Path(run_dir) / CHECKPOINTS) for name, run_dir in runs.items() if run_dir}
    return json.loads(distributed.gather("origins", json.dumps(found))[0])


def _start(
    config: TrainConfig, restored: checkpoint.Restored | None, made: build.Recipe, devices: Any, log: logging.RunLog
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
    index, count = distributed.data_shard(sharding, config.batch_size)
    sizes = config.data.batch_sizes(config.batch_size)
    for rows in config.data.batches(start, config.batch_size, index, count):
        size = count * len(rows.x0)
        if size not in sizes:
            raise ValueError(f"the data gave {len(rows.x0)} rows to each of {count} shards, not {sizes} in all")
        yield distributed.global_batch(rows, sharding, size)


def _record(config: TrainConfig) -> dict[str, Any]:
    """What config.json says: the resolved config, what it means in parameters and FLOPs, and where it runs."""
    examples = config.data.examples()
    example = examples[0][1]
    shapes = jax.eval_shape(functools.partial(build.init_params, config.model, example), jax.random.key(0))
    peak, source = environment.peak_flops()
    return {
        "config": configs.to_dict(config),
        "data": config.data.describe(),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(shapes)),
        "samples_per_step": round(config.batch_size * sum(rows for rows, _ in examples)),
        "flops_per_step": flops_per_step(config, examples),
        "flops_formula": "closed form of models/flops.py times the forward passes of a step: three, or its method's"
        if hasattr(config.model, "flops")
        else "XLA's count of the unoptimised step",
        "peak_flops": peak,
        "peak_source": source,
        "environment": environment.describe(),
        "command": [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def forward_flops(model: Any, batch: Batch) -> float:
    """Model FLOPs of one sample's forward pass, under the conditions that the batch holds."""
    sizes = conditions.sizes(batch.cond)
    return float(model.flops(tuple(batch.x0.shape[1:4]), sizes.text, sizes.frames, sizes.tokens))


def flops_per_step(config: TrainConfig, examples: Sequence[tuple[float, Batch]]) -> float | None:
    """Model FLOPs of a training step: closed form for transformers, XLA's count for an autoencoder (no scan).

    None where XLA does not count. Of data in parts of several shapes or sizes the mean.

    Args:
        config: of the run.
        examples: see `DataSource.examples`.
    """
    if hasattr(config.model, "flops"):
        forward = sum(rows * forward_flops(config.model, batch) for rows, batch in examples)
        if isinstance(config.objective, distillation.Method):
            return config.objective.forwards * forward * config.batch_size
        return flops.train_step_flops(forward, config.batch_size)
    example = examples[0][1]
    params = jax.eval_shape(functools.partial(build.init_params, config.model, example), jax.random.key(0))

    def loss(params: Params, key: jax.Array) -> Any:
        loss, _ = config.objective(build.as_network(config.model), params, example, key)
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
    atomic.write(path, json.dumps(record, indent=1) + "\n")
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
    folder = config.directory / load.CODEC_FOLDER
    if codec is not None and not folder.exists():
        module, params = codec
        weights.save(module, params, folder)
