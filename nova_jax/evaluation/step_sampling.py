"""Draws and measures the cells of a step benchmark: prompts, seeds, compiled programs, fine paths.

All models draw the same prompts from the same noise. What is measured of latents z, beside seconds and scores:

    rmse       root of the mean of (z - z_fine)^2, first batch. z_fine ends the teacher's path of `reference_steps`
               steps from the same noise, for a student at the guidance that is distilled into it
    diversity  root of the mean over prompts of the variance over seeds, `diversity_prompts` x `diversity_seeds` latents
"""

import pathlib
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax import atomic, generation, sampling
from nova_jax.evaluation import geneval, intervals, step_grid, timing
from nova_jax.evaluation.step_grid import Cell, Grid
from nova_jax.generation import placement, program
from nova_jax.parallel import distributed
from nova_jax.sampling import time_grids
from nova_jax.types import Conditioning, Sampled

SHOWN = 8  # images of each cell that are kept for the contact sheet
REFERENCE = sampling.AdamsBashforth(order=2)  # one evaluation a step, second order
CALLS = 16  # sampling steps that time one evaluation: about as long as a cell

Interval = tuple[float, float] | None
Batch = tuple[Conditioning, Conditioning, np.ndarray]  # prompts, none, seeds


class Asked(NamedTuple):
    """What drawing needs of an objective: equal for all methods, so that their students share programs."""

    schedule: Any
    prediction: Any


class Bench:
    """Models on a grid: prompts, encoded conditions, compiled programs and the reference.

    Args:
        models: by the names that cells call them; the run itself is `TEACHER`. All have one latent shape.
        grid: what to compare.
        folder: where reference paths and images are kept.
        scorer: brings prompts and judges images; None: the grid's prompts, not judged.

    Raises:
        ValueError: neither scorer nor grid bring prompts, or one is too long.
    """

    def __init__(
        self, models: Mapping[str, generation.TrainedRun], grid: Grid, folder: pathlib.Path, scorer: Any = None
    ) -> None:
        self.models, self.grid, self.folder, self.scorer = models, grid, folder, scorer
        self.programs: dict[tuple, Any] = {}
        self.compile_seconds = 0.0
        self.room = max(grid.steps + (grid.student_steps if len(models) > 1 else ()))
        self._choose([prompt.text for prompt in scorer.prompts] if scorer else list(grid.prompts))
        self.batches = {name: self._encode(trained) for name, trained in models.items()}

    def _choose(self, prompts: list[str]) -> None:
        """Prompts and seeds, in whole batches: `judged` batches of the tasks, then those for diversity."""
        if not prompts:
            raise ValueError("the run's data brings no prompts to draw: give some (--prompts)")
        grid, size = self.grid, self.grid.batch_size
        # Tasks are mixed, so that the first batch holds some of each; the seed of an image is its prompt's number.
        order = np.random.default_rng(grid.seed).permutation(len(prompts))
        self.count = len(prompts) if self.scorer else grid.images
        self.judged = -(-self.count // size)
        self.order = np.resize(order, self.judged * size)
        seeds = self.order if self.scorer else np.arange(len(self.order))
        self.varied = list(dict.fromkeys(prompts[i] for i in order))[: grid.diversity_prompts]
        rows = [(prompt, seed) for prompt in self.varied for seed in range(grid.diversity_seeds)]
        rows += rows[:1] * (-len(rows) % size)
        self.prompts = [prompts[i] for i in self.order] + [prompt for prompt, _ in rows]
        self.seeds = (grid.seed + np.concatenate([seeds, [seed for _, seed in rows]])).astype(np.uint32)

    def _encode(self, trained: generation.TrainedRun) -> list[Batch]:
        size = self.grid.batch_size
        slices = [slice(start, start + size) for start in range(0, len(self.prompts), size)]
        return [(*generation.encode(trained, self.prompts[part]), self.seeds[part]) for part in slices]

    def program(
        self,
        sampler: sampling.Sampler,
        guidance: float,
        room: int,
        model: str = step_grid.TEACHER,
        interval: Interval = None,
    ) -> Any:
        """The compiled sampling program: one for all times and scales, and for all models of one network.

        Programs with and without guidance are two.
        """
        trained, kind = self.models[model], program.kind_of(guidance)
        asked = Asked(trained.objective.schedule, trained.objective.prediction)
        key = (trained.network, trained.text_encoder, asked, sampler, kind, interval, room)
        if key not in self.programs:
            draw = program.make_draw(trained.network, asked, sampler, kind, interval, trained.latent_shape)
            start = time.perf_counter()
            with placement.scope(trained):
                self.programs[key] = draw.lower(*self.arguments(0, np.ones(room + 1), guidance, model)).compile()
            self.compile_seconds += time.perf_counter() - start
            warm = np.zeros(room + 1)
            warm[0] = 1.0  # one step: what the first call of a program pays is not the cell's
            jax.block_until_ready(self.programs[key](*self.arguments(0, warm, guidance, model)))
        return self.programs[key]

    def arguments(self, batch: int, times: Any, guidance: float, model: str = step_grid.TEACHER) -> tuple:
        """What a program of this model is called with."""
        cond, null, seeds = self.batches[model][batch]
        trained, times = self.models[model], np.asarray(times, np.float32)
        return placement.put(trained, (trained.params, cond, null, seeds, times, np.float32(guidance)))

    def target(self, cell: Cell) -> tuple[float, Interval]:
        """Guidance of the teacher's path that the cell aims at: its own, or what is distilled into the student."""
        if cell.model == step_grid.TEACHER:
            return cell.guidance, None
        student = self.models[cell.model]
        distilled = student.objective.guidance
        return cell.guidance if step_grid.reads_guidance(student) else distilled.scale, distilled.interval

    def reference(self, guidance: float, interval: Interval = None) -> np.ndarray:
        """Where the teacher's fine path of the first batch ends; kept in the folder."""
        within = f"-in-{interval[0]:g}-{interval[1]:g}" if interval else ""
        path = self.folder / f"reference-g{guidance:g}{within}.npy"
        if not distributed.agree(path.is_file()):
            steps = self.grid.reference_steps
            program = self.program(REFERENCE, guidance, steps, interval=interval)
            latents = placement.on_host(program(*self.arguments(0, time_grids.uniform(steps), guidance)).x)
            if distributed.is_main():
                with atomic.replacing(path) as partial, partial.open("wb") as file:
                    np.save(file, latents)
            distributed.barrier("nova_jax reference is there")
        return np.load(path)

    def evaluation(self, batch: int, guidance: float, model: str = step_grid.TEACHER) -> float:
        """Seconds of one network evaluation of a batch, from `CALLS` sampling steps that does nothing else."""
        trained, kind = self.models[model], program.kind_of(guidance)
        asked = Asked(trained.objective.schedule, trained.objective.prediction)
        walk = program.make_draw(trained.network, asked, timing.Stay(), kind, None, trained.latent_shape)
        arguments = self.arguments(batch, time_grids.uniform(CALLS), guidance, model)
        with placement.scope(trained):
            seconds, sampled = timing.seconds(lambda: walk(*arguments))
        return seconds / int(sampled.nfe)

    def prepare(self, cells: list[Cell]) -> None:
        """Compiles what cells are timed with and samples the fine paths, so that no cell pays for them."""
        for cell in {(cell.model, program.kind_of(cell.guidance)): cell for cell in cells}.values():
            self.evaluation(0, cell.guidance, cell.model)
        for guidance, interval in dict.fromkeys(map(self.target, cells)):
            self.reference(guidance, interval)

    def walk(self, cell: Cell, batch: int) -> tuple[float, Sampled]:
        """Seconds of a batch from noise to latents, and what it found.

        Raises:
            FloatingPointError: it ended in NaN or infinity: sampler, step and time.
        """
        schedule = self.models[cell.model].objective.schedule
        program = self.program(sampling.named(cell.sampler, cell.steps), cell.guidance, self.room, cell.model)
        padded = time_grids.pad(time_grids.named(cell.time_grid, cell.steps, schedule), self.room)
        arguments = self.arguments(batch, padded, cell.guidance, cell.model)
        spent, sampled = timing.seconds(lambda: program(*arguments))
        if not jnp.all(jnp.isfinite(sampled.x)):
            settings = generation.SamplingSettings(
                sampler=cell.sampler, num_steps=cell.steps, guidance_scale=cell.guidance, time_grid=cell.time_grid
            )
            cond, null, seeds = self.batches[cell.model][batch]
            generation.explain_nonfinite(self.models[cell.model], settings, (cond, null), seeds.tolist())
        return spent, sampled

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Draws the cell's images, batch by batch, and measures them."""
        seconds, overheads, latents, nfe = [], [], [], 0
        self.program(sampling.named(cell.sampler, cell.steps), cell.guidance, self.room, cell.model)  # compiled untimed
        for batch in range(self.judged):
            one = self.evaluation(batch, cell.guidance, cell.model)
            spent, sampled = self.walk(cell, batch)
            seconds.append(spent)
            latents.append(placement.on_host(sampled.x))
            nfe = int(sampled.nfe)
            overheads.append(spent / (nfe * one))
        squares = np.square(latents[0] - self.reference(*self.target(cell)))
        images = np.concatenate([self.decode(batch) for batch in latents])
        self._keep(cell, images)
        return {
            "nfe": nfe,
            "seconds": timing.spread(seconds),
            "overhead": timing.spread(overheads),
            "rmse": intervals.root_mean(squares.mean(axis=tuple(range(1, squares.ndim)))),
            "diversity": intervals.root_mean(self.variances(cell)),
        } | self._scores(images)

    def variances(self, cell: Cell) -> np.ndarray:
        """Of the latents over seeds, a mean over elements: one number for each prompt."""
        later = range(self.judged, len(self.batches[cell.model]))
        latents = np.concatenate([placement.on_host(self.walk(cell, batch)[1].x) for batch in later])
        prompts, seeds = len(self.varied), self.grid.diversity_seeds
        by_prompt = latents[: prompts * seeds].reshape(prompts, seeds, -1)
        return by_prompt.var(axis=1, ddof=1, dtype=np.float64).mean(axis=1)

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Latents as uint8 images."""
        return generation.decode(self.models[step_grid.TEACHER], latents)

    def _scores(self, images: np.ndarray) -> dict[str, Any]:
        """Task scores, with the overall rate over all images (the tasks have equally many)."""
        if self.scorer is None:
            return {}
        in_order = [np.empty(0)] * self.count
        for place, number in enumerate(self.order[: self.count]):
            in_order[number] = images[place]
        summary: geneval.Summary = self.scorer.summarize(in_order)
        right = round(sum(task.rate * task.n for task in summary.tasks.values()))
        low, high = intervals.wilson(right, self.count)
        tasks = {name: task._asdict() for name, task in summary.tasks.items()}
        return {"scores": tasks, "overall": {"rate": right / self.count, "low": low, "high": high, "n": self.count}}

    def _keep(self, cell: Cell, images: np.ndarray) -> None:
        if not distributed.is_main():
            return
        path = self.folder / "pictures" / f"{cell.key.replace('/', '_')}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, images[:SHOWN, 0])
