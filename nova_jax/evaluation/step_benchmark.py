"""How many steps are enough: quality against evaluations against seconds, for samplers, time grids, guidance, students.

Every cell draws the same images from the same noise: those of a trained run (sampler x time grid x guidance x steps)
and those of its few-step students (steps that they have learnt). It says

    nfe        network evaluations per image, guided ones counted twice         flops   nfe x those of one evaluation
    seconds    per batch, from noise to latents: median and range, compilation apart
    overhead   seconds / (nfe x those of one evaluation, which is timed in turn with the cell's batches: `timing`)
    rmse       distance of the latents to the run's own path of 1000 steps from the same noise: `step_sampling`
    diversity  how far the latents of one prompt differ from seed to seed: `step_sampling`
    scores     GenEval's six tasks, where the run's data can judge images and is installed: in a checkout

and, in a line of its own for each model, what its training cost. The number of steps is data, so each sampler compiles
once for all its step counts and time grids, and for all models of one network. Results are lines of results.jsonl; a
benchmark that was killed goes on where it stopped.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from nova_jax import config, distillation, environment, generation, sampling
from nova_jax.evaluation import geneval
from nova_jax.evaluation.step_grid import TEACHER, Cell, Grid, cells, student_cells, student_name
from nova_jax.evaluation.step_sampling import REFERENCE, Bench
from nova_jax.models.text import encoder as text_encoders
from nova_jax.parallel import distributed
from nova_jax.parallel import mesh as meshes
from nova_jax.runs import record as records

__all__ = [
    "REFERENCE",
    "REPORT",
    "RESULTS",
    "TEACHER",
    "Bench",
    "Cell",
    "Grid",
    "cell_of",
    "cells",
    "check_student",
    "read",
    "run",
]

RESULTS, REPORT = "results.jsonl", "report.html"


def run(
    run_dir: str | pathlib.Path,
    grid: Grid = Grid(),
    folder: str | pathlib.Path | None = None,
    *,
    command: str = "",
    console: rich.console.Console | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> pathlib.Path:
    """Measures every cell of the grid that has not been measured yet. Several processes sample together, one writes.

    Args:
        run_dir: a trained text-to-image run.
        grid: what to compare.
        folder: where results go; RUN/bench when not given.
        command: what the user typed, for the record.
        console: where progress is shown, a bar on a terminal and lines elsewhere; None: standard output.
        mesh: what to sample on, see `generation.mesh_for`; None: one device.

    Returns:
        The folder, with results.jsonl.

    Raises:
        FileNotFoundError: no such run.
        CheckpointError: no checkpoint in it.
        ValueError: results of another grid, model or mesh are already there; nothing to draw; a student that is none,
            or not of this run, or that has learnt none of the steps; a batch that does not divide over the mesh.
        FloatingPointError: sampling ended in NaN or infinity: sampler, step and time.
    """
    run_dir = pathlib.Path(run_dir)
    folder = pathlib.Path(folder) if folder else run_dir / "bench"
    if mesh is not None:
        meshes.check_batch_size(mesh, grid.batch_size)
    models = _load(run_dir, grid, mesh)
    points = [*cells(grid), *(cell for name in list(models)[1:] for cell in student_cells(name, models[name], grid))]
    saved = records.read(run_dir)["config"]
    console = console or rich.console.Console(quiet=not distributed.is_main())
    scorer = _scorer(saved["data"], grid.images, console)
    if not grid.prompts and saved.get("preview"):
        grid = dataclasses.replace(grid, prompts=tuple(saved["preview"]["prompts"]))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(models, grid, folder, scorer)
    header = _header(models, run_dir, grid, command) | {"is_scored": scorer is not None}
    done = _resume(folder / RESULTS, header)
    for line in _training(models, run_dir, grid):
        if line["name"] not in done:
            _append(folder / RESULTS, line)
    todo = [cell for cell in points if cell.key not in done]
    if todo:
        _measure(bench, todo, folder / RESULTS, console)
    return folder


def _header(
    models: Mapping[str, generation.TrainedRun], run_dir: pathlib.Path, grid: Grid, command: str
) -> dict[str, Any]:
    """What all results of a folder have in common; `_resume` compares it."""
    trained = models[TEACHER]
    folders = {student_name(folder): folder for folder in grid.students}
    return {
        "kind": "header",
        "run": str(run_dir),
        "model": records.read(run_dir)["config"]["name"],
        "parameters": _size(trained.params),
        "digest": _digest(trained.params),
        "students": {name: {"run": run, "digest": _digest(models[name].params)} for name, run in folders.items()},
        "grid": json.loads(json.dumps(dataclasses.asdict(grid))),
        "flops_per_evaluation": _flops(trained),
        "environment": environment.describe(),
        "command": command,
        "mesh": dict(trained.mesh.shape) if trained.mesh else {},
    }


def _measure(bench: Bench, todo: list[Cell], path: pathlib.Path, console: rich.console.Console) -> None:
    """Writes a line for each cell, then one for the programs."""
    bench.prepare(todo)
    flops = {name: _flops(trained) for name, trained in bench.models.items()}
    with _Progress(todo, console) as progress:
        for cell in todo:
            found = bench.measure(cell)
            found["flops"] = found["nfe"] * flops[cell.model]
            _append(path, {"kind": "cell"} | dataclasses.asdict(cell) | found)
            progress.done(cell, found)
    programs = {"count": len(bench.programs), "compile_seconds": round(bench.compile_seconds, 2)}
    _append(path, {"kind": "programs"} | programs)


def _load(run_dir: pathlib.Path, grid: Grid, mesh: jax.sharding.Mesh | None) -> dict[str, generation.TrainedRun]:
    """The run and its students, by name."""
    trained = generation.load_run(run_dir, mesh=mesh)
    models = {TEACHER: trained}
    for folder in grid.students:
        student = generation.load_run(folder, mesh=mesh)
        check_student(folder, student, trained)
        models[student_name(folder)] = student
    return models


def check_student(folder: str, student: generation.TrainedRun, trained: generation.TrainedRun) -> None:
    """Refuses a run whose latents cannot be held against those of the teacher.

    Raises:
        ValueError: it is no student, or draws other latents.
    """
    if not isinstance(student.objective, distillation.Method):
        name = type(student.objective).__name__
        raise ValueError(f"{folder} is not a student: it was trained with {name}, not with a distillation method")
    if student.latent_shape != trained.latent_shape:
        raise ValueError(
            f"the student {folder} draws latents {student.latent_shape} and the run {trained.latent_shape} (frames, "
            "height, width, channels): give students of this run"
        )
    if (student.codec, _digest(student.codec_params)) != (trained.codec, _digest(trained.codec_params)):
        raise ValueError(f"the student {folder} draws latents of another autoencoder: give students of this run")


def _training(models: Mapping[str, generation.TrainedRun], run_dir: pathlib.Path, grid: Grid) -> list[dict[str, Any]]:
    """A line for each model: what it is and what its training has cost so far, against the run's."""
    folders = [str(run_dir), *grid.students]
    lines = []
    for (name, trained), folder in zip(models.items(), folders, strict=True):
        per_step = float(records.read(folder)["flops_per_step"])
        lines.append(
            {
                "kind": "model",
                "name": name,
                "run": folder,
                "method": type(trained.objective).__name__,
                "parameters": _size(trained.params),
                "flops_per_evaluation": _flops(trained),
                "training_steps": trained.step,
                "flops_per_step": per_step,
                "training_flops": trained.step * per_step + _flops_before(folder),
            }
        )
    return [line | {"teacher_trainings": line["training_flops"] / lines[0]["training_flops"]} for line in lines]


def _flops_before(run_dir: str | pathlib.Path) -> float:
    """What the runs have cost that this one started from; a student's teacher is not one of them."""
    first = records.read(run_dir)["config"].get("start_from")
    if first is None:
        return 0.0
    return generation.load_run(first).step * float(records.read(first)["flops_per_step"]) + _flops_before(first)


class _Progress:
    """How many cells are done and how long the rest will take, judged by the evaluations left."""

    def __init__(self, todo: Sequence[Cell], console: rich.console.Console) -> None:
        self.console, self.start, self.count, self.number = console, time.perf_counter(), len(todo), 0
        self.spent, self.total = 0.0, sum(_cost(cell) for cell in todo)
        columns = ("{task.description}", rich.progress.BarColumn(), "{task.completed:.0%} of the evaluations")
        self.bar = rich.progress.Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=1.0)

    def __enter__(self) -> "_Progress":
        self.bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.stop()

    def done(self, cell: Cell, found: dict[str, Any]) -> None:
        """Says what a cell found and what is left."""
        self.number, self.spent = self.number + 1, self.spent + _cost(cell)
        left = (time.perf_counter() - self.start) * (self.total / self.spent - 1)
        score = f"  score {found['overall']['rate']:.3f}" if "overall" in found else ""
        self.console.print(
            f"{self.number}/{self.count}  {cell.key:32} nfe {found['nfe']:4}  {found['seconds']['median']:.3g} s/batch"
            f"  rmse {found['rmse']['value']:.4f}{score}  about {left / 60:.1f} min left",
            highlight=False,
            soft_wrap=True,
        )
        self.bar.update(self.task, completed=self.spent / self.total, description=cell.key)


def _cost(cell: Cell) -> float:
    """Evaluations of a cell, about: most solvers that take two a step are named for it by their `stages`."""
    is_single = cell.guidance in (0, 1) or cell.model != TEACHER
    return float(cell.steps * sampling.named(cell.sampler).stages * (1 if is_single else 2))


def read(folder: str | pathlib.Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The header and all other lines of a benchmark's results; a half-written last line is left out.

    Raises:
        FileNotFoundError: there are none.
    """
    path = pathlib.Path(folder) / RESULTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {RESULTS}: run `nova bench` first")
    lines = list(_lines(path))
    if not lines or lines[0].get("kind") != "header":
        raise ValueError(f"{path} does not start with a header: it is not from `nova bench`")
    return lines[0], lines[1:]


def _lines(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    *whole, _ = path.read_text(encoding="utf-8-sig").split("\n")  # what follows the last line break was cut short
    return (json.loads(line) for line in whole)


def _append(path: pathlib.Path, record: dict[str, Any]) -> None:
    if not distributed.is_main():
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _resume(path: pathlib.Path, header: dict[str, Any]) -> set[str]:
    """Models and cells that are done; starts the file if there is none and mends its end if it was cut short."""
    if not distributed.agree(path.is_file()):
        _append(path, header)
        return set()
    found, lines = read(path.parent)
    kinds = {"digest": "another model", "students": "other students", "grid": "another grid", "mesh": "another mesh"}
    for part, what in (kinds | {"is_scored": "other prompts, drawn with or without scores"}).items():
        there = found.get(part, header[part] if part == "is_scored" else {})
        if part == "grid":  # fields that older results lack or call otherwise, and the class that they name
            there = {"images" if name == "pictures" else name: value for name, value in there.items()}
            there = json.loads(json.dumps(dataclasses.asdict(Grid()))) | there
            there.pop("_class_name", None)
        if there != header[part]:
            raise ValueError(
                f"{path} holds results of {what}: choose another folder, or delete it\n  there: {there}\n"
                f"  now:   {header[part]}"
            )
    distributed.barrier("nova_jax results are read")
    if distributed.is_main():
        path.write_text("".join(json.dumps(line) + "\n" for line in (found, *lines)), encoding="utf-8")
    models = {line["name"] for line in lines if line["kind"] == "model"}
    return models | {cell_of(line).key for line in lines if line["kind"] == "cell"}


def cell_of(line: Mapping[str, Any]) -> Cell:
    """The point that a line of kind "cell" tells of; older results, which name no model, tell of the run itself."""
    return Cell(**{field.name: line[field.name] for field in dataclasses.fields(Cell) if field.name in line})


def _scorer(data: dict[str, Any], images: int, console: rich.console.Console) -> Any:
    """What the run's data judges images with; None where it has nothing, or is not installed here, which is said.

    The data is the one that the run's own config names.
    """
    try:
        source = records.build(data)
    except config.NotInstalled as error:
        console.print(f"The images are not scored: {error}", highlight=False, soft_wrap=True)
        return None
    return source.scorer(max(1, images // len(geneval.TASKS)))


def _flops(trained: generation.TrainedRun) -> float:
    """Of one evaluation for one image: the closed form of the network, its text encoder left out."""
    network, shape, length = trained.network, tuple(trained.latent_shape[:3]), trained.text_encoder.length
    encoder = text_encoders.find(network)  # runs once for all steps
    return float(network.flops(shape, length) - (encoder.flops(length) if encoder else 0))


def _size(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _digest(params: Any) -> str:
    """Tells models apart: the sums of the parameters' absolute values."""
    total = sum(
        float(np.abs(generation.placement.on_host(leaf).astype(np.float64)).sum()) for leaf in jax.tree.leaves(params)
    )
    return f"{total:.10e}"
