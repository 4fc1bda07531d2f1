"""How many steps are enough: quality against evaluations against seconds, for samplers, time grids and guidance.

Every cell of the grid (sampler x time grid x guidance x steps) draws the same pictures from the same noise and says

    nfe        network evaluations per picture, guided ones counted twice         flops   nfe x those of one evaluation
    seconds    per batch, from noise to latents: median and range, compilation apart
    overhead   seconds / (nfe x those of one evaluation, which is timed in turn with the cell's batches: `timing`)
    rmse       distance of the latents to the same model's path of 1000 steps from the same noise, first batch
    scores     GenEval's six tasks, where the run's data can judge pictures

The number of steps is data, so each sampler compiles once for all its step counts and time grids. Results are lines of
results.jsonl; a benchmark that was killed goes on where it stopped.
"""

import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.progress

from nova_jax import config, environment, inference, sampling
from nova_jax.evaluation import geneval, intervals, timing
from nova_jax.sampling import named, time_grids
from nova_jax.types import Conditioning

RESULTS, REPORT = "results.jsonl", "report.html"
SHOWN = 8  # pictures of each cell that are kept for the contact sheet
REFERENCE = sampling.AdamsBashforth(order=2)  # one evaluation a step, second order
CALLS = 16  # steps of the walk that times one evaluation: about as long as a cell's


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """What to compare.

    Attributes:
        samplers: Names of `sampling.named.SAMPLERS`.
        steps: Numbers of steps.
        time_grids: Names that `time_grids.named` knows; "{num_steps}" in the path of a fitted grid is filled in.
        guidance: Scales of classifier-free guidance.
        pictures: To draw in each cell; rounded to whole batches.
        batch_size: Pictures at once.
        reference_steps: Of the path that latents are compared with.
        prompts: What to draw where the run's data brings no prompts of its own.
        seed: Of the first picture.
    """

    samplers: tuple[str, ...] = ("euler", "heun", "ab2", "dpmpp_2m", "unipc_2", "deis_3")
    steps: tuple[int, ...] = (4, 8, 16, 32)
    time_grids: tuple[str, ...] = ("uniform",)
    guidance: tuple[float, ...] = (2.0,)
    pictures: int = 192
    batch_size: int = 64
    reference_steps: int = 1000
    prompts: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("samplers", "steps", "time_grids", "guidance"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{field} is {values}; give one or more different values")
        for sampler, steps in itertools.product(self.samplers, self.steps):
            named.get(sampler, steps)
        if min(self.guidance) < 0:
            raise ValueError(f"guidance is {self.guidance}; scales must be 0 or more (1 is no guidance)")
        if self.pictures < 1 or self.batch_size < 1 or self.reference_steps < max(self.steps):
            raise ValueError(
                "pictures and batch_size must be at least 1 and reference_steps no less than the most steps, got "
                f"{self.pictures}, {self.batch_size} and {self.reference_steps}"
            )


@dataclasses.dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    sampler: str
    time_grid: str
    guidance: float
    steps: int

    @property
    def key(self) -> str:
        """A name for files and messages."""
        return f"{self.sampler}-{self.time_grid}-g{self.guidance:g}-{self.steps}"


def cells(grid: Grid) -> list[Cell]:
    """All points, the cheap ones of each sampler first."""
    product = itertools.product(grid.samplers, grid.time_grids, grid.guidance, grid.steps)
    return [Cell(*point) for point in product]


class Bench:
    """A trained run on a grid: prompts, encoded conditions, compiled programs and the reference."""

    def __init__(self, trained: inference.TextToImage, grid: Grid, folder: pathlib.Path, scorer: Any = None) -> None:
        self.trained, self.grid, self.folder, self.scorer = trained, grid, folder, scorer
        self.schedule = trained.objective.schedule
        self.programs: dict[tuple, Any] = {}
        self.compile_seconds = 0.0
        prompts = [prompt.text for prompt in scorer.prompts] if scorer else list(grid.prompts)
        if not prompts:
            raise ValueError("the run's data brings no prompts to draw: give some")
        # Tasks are mixed, so that the first batch holds some of each; the seed of a picture is its prompt's number.
        self.order = np.random.default_rng(grid.seed).permutation(len(prompts))
        count = len(prompts) if scorer else grid.pictures
        self.order = np.resize(self.order, -(-count // grid.batch_size) * grid.batch_size)
        self.count = count
        self.prompts = [prompts[i] for i in self.order]
        self.seeds = np.asarray(grid.seed + (self.order if scorer else np.arange(len(self.order))), np.uint32)
        self.batches = [self._encode(start) for start in range(0, len(self.prompts), grid.batch_size)]
        self.room = max(grid.steps)

    def _encode(self, start: int) -> tuple[Conditioning, Conditioning, np.ndarray]:
        stop = start + self.grid.batch_size
        return *inference.encode(self.trained, self.prompts[start:stop]), self.seeds[start:stop]

    def program(self, sampler: sampling.Sampler, guidance: float, room: int) -> Any:
        """The compiled walk for this sampler: one for all times and scales, with and without guidance apart."""
        guided = inference.guidance_of(guidance)
        key = (sampler, guided, room)
        if key not in self.programs:
            trained = self.trained
            draw = inference.make_draw(trained.network, trained.objective, sampler, guided, None, trained.latent_shape)
            start = time.perf_counter()
            self.programs[key] = draw.lower(*self._arguments(0, np.ones(room + 1), guidance)).compile()
            self.compile_seconds += time.perf_counter() - start
            warm = np.zeros(room + 1)
            warm[0] = 1.0  # one step: what the first call of a program pays is not the cell's
            jax.block_until_ready(self.programs[key](*self._arguments(0, warm, guidance)))
        return self.programs[key]

    def _arguments(self, batch: int, times: Any, guidance: float) -> tuple:
        cond, null, seeds = self.batches[batch]
        return self.trained.params, cond, null, seeds, jnp.asarray(times, jnp.float32), jnp.float32(guidance)

    def reference(self, guidance: float) -> np.ndarray:
        """Where a fine path of the first batch ends; kept in the folder."""
        path = self.folder / f"reference-g{guidance:g}.npy"
        if not path.is_file():
            steps = self.grid.reference_steps
            program = self.program(REFERENCE, guidance, steps)
            latents = program(*self._arguments(0, time_grids.uniform(steps), guidance)).x
            with path.with_suffix(".partial").open("wb") as file:
                np.save(file, np.asarray(latents))
            path.with_suffix(".partial").rename(path)
        return np.load(path)

    def evaluation(self, batch: int, guidance: float) -> float:
        """Seconds of one network evaluation of a batch, from a walk of `CALLS` steps that does nothing else."""
        trained, guided = self.trained, inference.guidance_of(guidance)
        shape = trained.latent_shape
        walk = inference.make_draw(trained.network, trained.objective, timing.Stay(), guided, None, shape)
        arguments = self._arguments(batch, time_grids.uniform(CALLS), guidance)
        seconds, sampled = timing.seconds(lambda: walk(*arguments))
        return seconds / int(sampled.nfe)

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Draws the cell's pictures, batch by batch, and measures them."""
        sampler = named.get(cell.sampler, cell.steps)
        times = time_grids.named(cell.time_grid, cell.steps, self.schedule)
        program = self.program(sampler, cell.guidance, self.room)
        padded = time_grids.pad(times, self.room)
        seconds, overheads, latents, nfe = [], [], [], 0
        for batch in range(len(self.batches)):
            one = self.evaluation(batch, cell.guidance)
            arguments = self._arguments(batch, padded, cell.guidance)
            spent, sampled = timing.seconds(lambda arguments=arguments: program(*arguments))
            seconds.append(spent)
            latents.append(np.asarray(sampled.x))
            nfe = int(sampled.nfe)
            overheads.append(spent / (nfe * one))
            if not np.all(np.isfinite(latents[-1])):
                settings = inference.SamplingSettings(
                    sampler=cell.sampler, num_steps=cell.steps, guidance_scale=cell.guidance, time_grid=cell.time_grid
                )
                cond, null, seeds = self.batches[batch]
                inference.explain_nonfinite(self.trained, settings, (cond, null), seeds.tolist())
        per_sample = np.mean((latents[0] - self.reference(cell.guidance)) ** 2, axis=tuple(range(1, latents[0].ndim)))
        pictures = np.concatenate([self.decode(batch) for batch in latents])
        self._keep(cell, pictures)
        rmse, low, high = _rmse(per_sample)
        return {
            "nfe": nfe,
            "seconds": timing.spread(seconds),
            "overhead": timing.spread(overheads),
            "rmse": {"value": rmse, "low": low, "high": high, "n": len(per_sample)},
        } | self._scores(pictures)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents as uint8 pictures."""
        return np.asarray(inference.make_decode(self.trained.codec)(self.trained.codec_params, latents))

    def _scores(self, pictures: np.ndarray) -> dict[str, Any]:
        """Task scores, with the overall rate over all pictures (the tasks have equally many)."""
        if self.scorer is None:
            return {}
        in_order = [np.empty(0)] * self.count
        for place, number in enumerate(self.order[: self.count]):
            in_order[number] = pictures[place]
        summary: geneval.Summary = self.scorer.summarize(in_order)
        right = round(sum(task.rate * task.n for task in summary.tasks.values()))
        low, high = intervals.wilson(right, self.count)
        tasks = {name: task._asdict() for name, task in summary.tasks.items()}
        return {"scores": tasks, "overall": {"rate": right / self.count, "low": low, "high": high, "n": self.count}}

    def _keep(self, cell: Cell, pictures: np.ndarray) -> None:
        path = self.folder / "pictures" / f"{cell.key.replace('/', '_')}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, pictures[:SHOWN, 0])


def run(
    run_dir: str | pathlib.Path,
    grid: Grid = Grid(),
    folder: str | pathlib.Path | None = None,
    *,
    command: str = "",
    console: rich.console.Console | None = None,
) -> pathlib.Path:
    """Measures every cell of the grid that has not been measured yet.

    Args:
        run_dir: a trained text-to-image run.
        grid: what to compare.
        folder: where results go; RUN/bench when not given.
        command: what the user typed, for the record.
        console: where progress is shown, a bar on a terminal and lines elsewhere; None: standard output.

    Returns:
        The folder, with results.jsonl.

    Raises:
        FileNotFoundError: no such run, or no checkpoint in it.
        ValueError: results of another grid or model are already there; nothing to draw.
        FloatingPointError: a walk ended in NaN or infinity: sampler, step and time.
    """
    run_dir = pathlib.Path(run_dir)
    folder = pathlib.Path(folder) if folder else run_dir / "bench"
    trained = inference.load_run(run_dir)
    saved = json.loads((run_dir / "config.json").read_text())["config"]
    scorer = _scorer(saved["data"], grid.pictures)
    if not grid.prompts and saved.get("preview"):
        grid = dataclasses.replace(grid, prompts=tuple(saved["preview"]["prompts"]))
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(trained, grid, folder, scorer)
    header = {
        "kind": "header",
        "run": str(run_dir),
        "model": saved["name"],
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(trained.params)),
        "digest": _digest(trained.params),
        "grid": json.loads(json.dumps(config.to_dict(grid))),
        "flops_per_evaluation": _flops(trained),
        "environment": environment.describe(),
        "command": command,
    }
    done = _resume(folder / RESULTS, header)
    todo = [cell for cell in cells(grid) if cell.key not in done]
    if not todo:
        return folder
    for guidance in grid.guidance:
        bench.evaluation(0, guidance)  # compiles its walk
        bench.reference(guidance)
    with _Progress(todo, console or rich.console.Console()) as progress:
        for cell in todo:
            found = bench.measure(cell)
            found["flops"] = found["nfe"] * header["flops_per_evaluation"]
            _append(folder / RESULTS, {"kind": "cell"} | dataclasses.asdict(cell) | found)
            progress.done(cell, found)
    programs = {"count": len(bench.programs), "compile_seconds": round(bench.compile_seconds, 2)}
    _append(folder / RESULTS, {"kind": "programs"} | programs)
    return folder


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
    return float(cell.steps * named.get(cell.sampler).stages * (1 if cell.guidance in (0, 1) else 2))


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
    *whole, _ = path.read_text(encoding="utf-8").split("\n")  # what follows the last line break was cut short
    return (json.loads(line) for line in whole)


def _append(path: pathlib.Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _resume(path: pathlib.Path, header: dict[str, Any]) -> set[str]:
    """The cells that are done; starts the file if there is none and mends its end if it was cut short."""
    if not path.is_file():
        _append(path, header)
        return set()
    found, lines = read(path.parent)
    for part in ("digest", "grid"):
        if found[part] != header[part]:
            raise ValueError(
                f"{path} holds results of another {'model' if part == 'digest' else 'grid'}: choose another folder, or "
                f"delete it\n  there: {found[part]}\n  now:   {header[part]}"
            )
    path.write_text("".join(json.dumps(line) + "\n" for line in (found, *lines)), encoding="utf-8")
    names = [field.name for field in dataclasses.fields(Cell)]
    return {Cell(*(line[name] for name in names)).key for line in lines if line["kind"] == "cell"}


def _scorer(data: dict[str, Any], pictures: int) -> Any:
    """What the run's data judges pictures with; None where it has nothing.

    The data is the one that the run's own config names.
    """
    source = config.from_dict(data, packages=("nova_jax", "data_pipelines"))
    return source.scorer(per_task=max(1, pictures // len(geneval.TASKS))) if hasattr(source, "scorer") else None


def _flops(trained: inference.TextToImage) -> float:
    """Of one evaluation for one picture: the closed form of the network, its text encoder left out."""
    network, shape, length = trained.network, tuple(trained.latent_shape[:3]), trained.text_length
    encoder = getattr(network, "text_encoder", None)  # runs once for all steps
    return float(network.flops(shape, length) - (encoder.flops(length) if encoder else 0))


def _digest(params: Any) -> str:
    """Tells models apart: the sums of the parameters' absolute values."""
    total = sum(float(np.abs(np.asarray(leaf, np.float64)).sum()) for leaf in jax.tree.leaves(params))
    return f"{total:.10e}"


def _rmse(squares: np.ndarray) -> tuple[float, float, float]:
    """The root mean square over samples and its 95 % interval, from the spread between samples."""
    mean = float(squares.mean(dtype=np.float64))
    spread = 1.96 * float(squares.std(ddof=1)) / np.sqrt(len(squares)) if len(squares) > 1 else 0.0
    return float(np.sqrt(mean)), float(np.sqrt(max(mean - spread, 0.0))), float(np.sqrt(mean + spread))
