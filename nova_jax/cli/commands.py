"""The `nova` command: `nova generate`, `compile`, `evaluate`, `bench`, `plan`, `launch`, `weights`, `doctor`.

Each command is a frozen dataclass, read by tyro, whose `run` imports what it needs: `nova --help` must answer within a
second, and jax alone takes longer than that.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import sys
from typing import Annotated, Any, Literal

import tyro

from nova_jax.cli import launch
from nova_jax.cli.compile import Compile
from nova_jax.cli.options import Mesh

ImageTask = Literal["text-to-image", "inpaint", "outpaint", "remove-background", "vary", "color-guided"]
VideoTask = Literal["text-to-video", "multi-shot"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """What --task is told: docs/canvas.md has a line for each task of images."""

    text: str | None = None
    """What to draw; of inpaint, without it: remove what is there. All but remove-background."""
    negative_text: str | None = None
    """What to keep out. All but remove-background."""
    image: pathlib.Path | None = None
    """The PNG or JPEG to edit: inpaint, outpaint, remove-background. Of text-to-video: its first frame."""
    mask_image: pathlib.Path | None = None
    """Black and white PNG: inpaint changes the black, outpaint the white."""
    mask_prompt: str | None = None
    """In place of a mask: what inpaint changes, what outpaint keeps."""
    mode: str | None = None
    """Boundary of outpaint: DEFAULT (soft) or PRECISE (hard)."""
    condition_image: pathlib.Path | None = None
    """Text-to-image takes its layout from this image."""
    control_mode: str | None = None
    """What of it is followed: CANNY_EDGE (default) or SEGMENTATION."""
    control_strength: float | None = None
    """How closely, 0 to 1. Default: 0.7."""
    style: str | None = None
    """One of eight looks of text-to-image; an unknown name lists them."""
    images: tuple[pathlib.Path, ...] = ()
    """The 1 to 5 images that vary starts from."""
    similarity_strength: float | None = None
    """How close vary stays to them, 0.2 to 1. Default: 0.7."""
    colors: tuple[str, ...] = ()
    """The palette of color-guided, 1 to 10 of #RRGGBB."""
    reference_image: pathlib.Path | None = None
    """An image that color-guided takes subject and style from."""
    width: int | None = None
    """Of the output in pixels, where no source decides it. Default: as the model was trained."""
    height: int | None = None
    """Likewise."""
    quality: str | None = None
    """standard (default) or premium: more steps."""
    cfg_scale: float | None = None
    """How strongly to hold to the text, 1.1 to 10. Default: 6.5. Of images."""
    duration_seconds: int | None = None
    """How long the film of multi-shot is, 12 to 120 in steps of 6: a shot for each 6."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Draw images or videos with a trained run, from prompts, a request or a task; all is in their metadata."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """What to draw; with --request or --task none."""
    run: pathlib.Path
    """The run folder of a trained text-to-image experiment; for requests and most tasks, of an editing model."""
    request: pathlib.Path | None = None
    """A request in the public JSON form of Amazon Nova Canvas or Reel; - reads standard input."""
    task: ImageTask | VideoTask | None = None
    """What to do with the task options."""
    options: tyro.conf.OmitArgPrefixes[TaskOptions] = TaskOptions()
    out: pathlib.Path | None = None
    """Folder for what is drawn; RUN/generated when not given."""
    output: pathlib.Path | None = None
    """Of videos: the MP4 file of text-to-video, the folder of a film. Default: named after the text, in --out."""
    seed: int | None = None
    """Seed of the first image of each prompt; the others count up. Default: 0; of a task 12, or 42 for videos."""
    count: int | None = None
    """Images per prompt. Default: 1."""
    sampler: str | None = None
    """The solver: euler, heun, dpmpp_2m, unipc_2, ...; an unknown name lists them. Default: heun, or a student's."""
    num_steps: int | None = None
    """Sampler steps; Heun evaluates the network twice in each. Default: 25, 4 of a student, 12 or 24 of an edit."""
    time_grid: str | None = None
    """uniform (default), shifted:3, cosine, karras, ..., or the JSON file of a fitted grid."""
    guidance_scale: float | None = None
    """Classifier-free guidance scale of prompts and videos; 1 is none and costs half. Default: 4, 1 for a student."""
    guidance_interval: tuple[float, float] | None = None
    """Guide only at times within (low, high]: 1 is noise, 0 is data."""
    upscale: int = 1
    """Whole-number enlargement of what is saved, by repeated pixels."""
    overwrite: bool = False
    """Replace files of the same name; else what is there stays, and another drawing gets a number behind its name."""
    text_encoder: pathlib.Path | None = None
    """Folder of the run's frozen text encoder (T5, umT5), if it has moved since the run was trained."""
    tile: int | None = None
    """Decode in overlapping tiles of so many latents a side, shared out over the devices; for what is too big whole."""
    compiled: bool = False
    """Draw with the programs that `nova compile` wrote into the run folder: machine code, so only where you did."""
    mesh: Mesh = Mesh()

    def execute(self) -> None:
        """Loads the run, samples, writes PNG or MP4 files and prints their paths."""
        from nova_jax import generation
        from nova_jax.cli import images, videos

        options = images.given(self, "seed", "count") | images.given(self.options)
        images.check_source(self.prompts, self.request, self.task, options)
        images.check_numbers(self.upscale, *((self.seed, self.count) if self.prompts else (None, None)), self.tile)
        sampling = images.given(self, "sampler", "num_steps", "time_grid", "guidance_scale", "guidance_interval")
        trained = generation.load_run(self.run, text_path=self.text_encoder, mesh=self.mesh.make(self.run))
        trained = trained._replace(tiles=self._tiles(), programs=self._programs())
        out = self.out or self.run / "generated"
        images.check_folder(out)
        if videos.draws_videos(trained):
            self._draw_videos(trained, out, options, sampling)
            return
        if self.output or self.task in videos.TASKS:
            what = "--output" if self.output else f"--task {self.task}"
            raise ValueError(f"{what} is for videos, and this run draws images: train one on videos, or leave it out")
        if self.prompts:
            paths = self._draw_prompts(trained, out, sampling)
        else:
            request = images.read_request(trained, self.request, self.task, options)
            settings = images.settings_of(request, sampling)
            saving = {"out": out, "run": self.run, "upscale": self.upscale, "overwrite": self.overwrite}
            paths = images.draw(trained, request, settings, **saving)
        for path in paths:
            print(path)

    def _tiles(self) -> Any:
        from nova_jax.models import tiling

        return None if self.tile is None else tiling.Tiles(size=(self.tile, self.tile), overlap=self.tile // 4)

    def _programs(self) -> Any:
        from nova_jax.generation import compiled

        return compiled.Reader(self.run) if self.compiled else None

    def _draw_videos(self, trained: Any, out: pathlib.Path, options: dict[str, Any], sampling: dict[str, Any]) -> None:
        from nova_jax import generation
        from nova_jax.cli import videos

        requests = videos.read_requests(trained, self.prompts, self.request, self.task, options)
        videos.check_output(requests, self.output, overwrite=self.overwrite)
        settings = dataclasses.replace(generation.settings_for(trained), **sampling)
        saving = {"upscale": self.upscale, "overwrite": self.overwrite}
        for request in requests:
            for video in videos.draw(trained, request, settings, run=self.run, out=out, output=self.output, **saving):
                print(f"{video.path}  {video.frames} frames  {video.seconds:.2f} s")

    def _draw_prompts(self, trained: Any, out: pathlib.Path, sampling: dict[str, Any]) -> list[pathlib.Path]:
        from nova_jax import generation
        from nova_jax.parallel import distributed

        count = 1 if self.count is None else self.count
        prompts = [prompt for prompt in self.prompts for _ in range(count)]
        seeds = [(self.seed or 0) + i for _ in self.prompts for i in range(count)]
        settings = dataclasses.replace(generation.settings_for(trained), **sampling)
        pixels = generation.generate(trained, prompts, seeds, settings)
        if not distributed.is_main():
            return []
        return generation.save_pngs(out, pixels, prompts, seeds, settings, self.upscale, overwrite=self.overwrite)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Examine a trained editing or video run part by part: scores between ceiling and chance, bars, contact sheets."""

    run: pathlib.Path
    """The run folder of a trained editing or video experiment."""
    out: pathlib.Path | None = None
    """Where scores.json and report.html go; RUN/evaluation when not given."""
    overwrite: bool = False
    """Replace the scores in that folder; else they stay, and these go beside it, to a folder with a number."""
    per_task: int = 64
    """Questions in each part of the exam, 2 or more."""
    guidance: float = 2.0
    """Classifier-free guidance scale, 1.1 to 10."""
    mesh: Mesh = Mesh()

    def execute(self) -> None:
        """Draws, scores, writes both files, and prints the table and the report's path."""
        from nova_jax.evaluation import task_evaluation, task_report
        from nova_jax.parallel import distributed

        task_evaluation.check(self.per_task, self.guidance)
        command = " ".join(["nova", *sys.argv[1:]])
        found = task_evaluation.run(
            self.run,
            per_task=self.per_task,
            guidance=self.guidance,
            folder=self.out,
            overwrite=self.overwrite,
            command=command,
            mesh=self.mesh.make(self.run),
        )
        if distributed.is_main():
            print(task_evaluation.table(found))
            print(task_report.write(found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bench:
    """Compare samplers, steps, time grids, guidance and students of a trained run: quality, evaluations, seconds."""

    run: pathlib.Path
    """The run folder of a trained text-to-image experiment."""
    out: pathlib.Path | None = None
    """Where results.jsonl and report.html go; RUN/bench when not given. What is there already is not measured again."""
    samplers: tuple[str, ...] = ("euler", "heun", "ab2", "dpmpp_2m", "unipc_2", "deis_3")
    """Which solvers; an unknown name lists them all."""
    steps: tuple[int, ...] = (4, 8, 16, 32)
    """Which numbers of steps."""
    time_grids: tuple[str, ...] = ("uniform",)
    """uniform, shifted:3, cosine, ..., or fitted grids: a path with {num_steps} in it."""
    guidance: tuple[float, ...] = (2.0,)
    """Which guidance scales; 1 is none."""
    prompts: tuple[str, ...] = ()
    """What to draw where the run's data brings no prompts of its own. Default: those of the run's preview."""
    images: Annotated[int, tyro.conf.arg(aliases=["--pictures"])] = 192
    """Images to sample in each cell."""
    batch_size: int = 64
    """Images at once."""
    students: tuple[str, ...] = ()
    """Run folders of few-step students of the run, to hold against it."""
    student_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of steps of the students, as far as they have learnt them."""
    mesh: Mesh = Mesh()

    def execute(self) -> None:
        """Measures what is not measured yet, writes the report and prints its path."""
        from nova_jax.evaluation import step_benchmark, step_report
        from nova_jax.parallel import distributed

        names = [field.name for field in dataclasses.fields(self) if field.name not in ("run", "out", "mesh")]
        grid = step_benchmark.Grid(**{name: getattr(self, name) for name in names})
        mesh = self.mesh.make(self.run, batch_size=self.batch_size)
        folder = step_benchmark.run(self.run, grid, self.out, command=" ".join(["nova", *sys.argv[1:]]), mesh=mesh)
        if distributed.is_main():
            print(step_report.write(folder))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare:
    """Print what changed between two benchmarks; fails if anything got worse beyond the intervals."""

    before: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the first benchmark."""
    after: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the second."""

    def execute(self) -> None:
        """Prints one line per change and exits with 1 on a regression."""
        from nova_jax.evaluation import step_report

        changes = step_report.compare(self.before, self.after)
        for change in changes:
            if change.before != change.after:
                print(
                    f"{change.cell:36} {change.what:18} {change.before:10.4g} -> {change.after:10.4g}  {change.verdict}"
                )
        worse = sum(change.verdict == "worse" for change in changes)
        better = sum(change.verdict == "better" for change in changes)
        print(f"{len(changes)} numbers compared: {better} better, {worse} worse beyond the intervals")
        if worse:
            sys.exit(1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Doctor:
    """Print versions, devices, and the peak that MFU will be measured against."""

    def execute(self) -> None:
        """Prints one JSON object."""
        from nova_jax import environment

        print(json.dumps(environment.describe(), indent=2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Weights:
    """Read a folder of public or own weights, check every key and shape, and say what it holds."""

    folder: Annotated[pathlib.Path, tyro.conf.Positional]
    """config.json and safetensors, as diffusers, transformers or nova_jax save them."""
    out: pathlib.Path | None = None
    """Write the weights here in nova_jax's own format."""
    dtype: str = "float32"
    """Dtype of the written file: float32, bfloat16 or float16."""

    def execute(self) -> None:
        """Prints class and parameter count; writes `out` when asked."""
        import jax

        from nova_jax import weights
        from nova_jax.weights import tables

        if self.out and self.out.resolve() == self.folder.resolve():
            raise ValueError(f"--out {self.out} is the folder that is read: give another one, so that nothing is lost")
        module, params = weights.load(self.folder)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(f"{type(module).__name__}: {count:,} parameters in {len(jax.tree.leaves(params))} arrays")
        tables.check_finite(tables.flatten(params))
        if self.out:
            weights.save(module, params, self.out, dtype=self.dtype)
            print(self.out)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Compile an experiment for hardware that is not here: memory, kernels, traffic, exchanges, seconds, what binds."""

    experiment: Annotated[str, tyro.conf.Positional]
    """A module, such as experiments.quickstart, or a preset, such as XL/2 or wan-14B."""
    changes: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Fields of its config, as path=value: batch_size=512 model.remat=full data.latent_shape=(1,64,64,16)."""
    target: str
    """h200:8, v5e:2x4, v5p:8x8x4, v6e:4x4, or here."""
    mesh: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """How devices are shared, as fsdp=8 or data=2,context=4; again for each mesh. Default: all data, and all fsdp."""
    only: Literal["train", "sample"] | None = None
    """The training step or an evaluation of guided sampling alone. Default: both."""

    def execute(self) -> None:
        """Prints a table for each program, the best mesh first."""
        import jax

        from nova_jax.planning import hardware, plan, programs

        if self.target != hardware.HERE:
            jax.config.update("jax_platforms", "cpu")  # nothing is computed, whatever there is
        sys.path.insert(0, "")
        target, config = hardware.find(self.target), programs.find(self.experiment, self.changes)
        meshes = [plan.read_mesh(text) for text in self.mesh] or plan.default_meshes(target.count)
        for what in (self.only,) if self.only else ("train", "sample"):
            print(plan.table(plan.make(config, target, meshes, what)), end="\n\n")


COMMANDS = {
    "generate": Generate,
    "compile": Compile,
    "evaluate": Evaluate,
    "bench": Bench,
    "plan": Plan,
    "launch": launch.Launch,
    "doctor": Doctor,
    "weights": Weights,
}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `nova` command; errors a user can mend are one sentence and a non-zero exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["launch"]:
        return launch.main(argv[1:])
    if argv[:2] == ["bench", "compare"]:
        command = tyro.cli(Compare, prog="nova bench compare", args=argv[2:])
        return _execute(command)
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="nova", description=__doc__, args=argv)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return _execute(command)


def _execute(command: Any) -> None:
    from nova_jax import compilation_cache, config
    from nova_jax.parallel import distributed

    try:
        command = config.expand_home(command)
        if isinstance(command, Compare | Plan):
            return command.execute()
        distributed.initialize()
        distributed.check_devices()
        run = getattr(command, "run", None)
        cache: Any = contextlib.nullcontext()
        if run is not None and run.is_dir() and os.access(run, os.W_OK):
            cache = compilation_cache.kept_in(run)
        with cache:
            command.execute()
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        sys.exit(f"nova: {error}")
