"""How many steps does a trained run need, and what does a time grid fitted to it save?

    python -m experiments.studies.sampler_steps run=runs/quickstart
    python -m experiments.studies.sampler_steps run=runs/quickstart grid.steps=4,8 fit_steps=4,8

First the step benchmark (`nova bench`), into RUN/bench. Then, for each of `fit_samplers` and `fit_steps`, a time grid
is fitted through the sampler and kept as RUN/grids/SAMPLER-gGUIDANCE-STEPS.json; fitted on some prompts and seeds, it
is compared with every fixed grid on others, by the distance of latents to the path of 1000 steps (fitted.json).
"""

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.scenes.exams import geneval_scores
from nova_jax import config, generation, sampling
from nova_jax.evaluation import step_benchmark, step_report
from nova_jax.generation import program
from nova_jax.runs import record as records
from nova_jax.sampling import fitted, time_grids


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerSteps:
    """The benchmark's grid, and which time grids to fit.

    Attributes:
        run: A trained run on scenes.
        grid: Of the benchmark.
        fit_samplers: Solvers to fit grids for.
        fit_steps: Numbers of steps to fit them for.
        guidance: Scale that they are fitted at.
        samples: Prompts and seeds to fit on; a quarter of them picks the best on the way.
        test_samples: Others, to compare on.
        fit: How to fit.
    """

    run: str = "runs/quickstart"
    grid: step_benchmark.Grid = dataclasses.field(default_factory=step_benchmark.Grid)
    fit_samplers: tuple[str, ...] = ("euler", "dpmpp_2m")
    fit_steps: tuple[int, ...] = (4, 6, 8, 12, 16)
    guidance: float = 2.0
    samples: int = 192
    test_samples: int = 128
    fit: fitted.FitSettings = dataclasses.field(
        default_factory=lambda: fitted.FitSettings(steps=120, batch_size=48, evaluate_every=20)
    )


CONFIG = SamplerSteps()


def fit_grids(settings: SamplerSteps) -> list[dict[str, Any]]:
    """Fits every grid that is not there yet, compares it with the fixed ones, and says how they compare."""
    run = pathlib.Path(settings.run)
    trained = generation.load_run(run)
    world = config.from_dict(records.read(run)["config"]["data"], packages=("nova_jax", "data_pipelines")).source.world
    problem, noise = make_problem(trained, world, settings.guidance, settings.samples, seed=1_000_000)
    test_problem, test_noise = make_problem(trained, world, settings.guidance, settings.test_samples, seed=2_000_000)
    reference = fine_ends(problem, noise)
    test_reference = fine_ends(test_problem, test_noise)
    found = []
    for name in settings.fit_samplers:
        for steps in settings.fit_steps:
            path = run / "grids" / f"{name}-g{settings.guidance:g}-{steps}.json"
            start = time.perf_counter()
            if not path.is_file():
                sampler = sampling.named(name, steps)
                grid = fitted.fit_grid(
                    problem, noise, sampler=sampler, num_steps=steps, reference=reference, settings=settings.fit
                )
                dataclasses.replace(
                    grid,
                    model=str(run),
                    task="text to image",
                    guidance=f"classifier-free, {settings.guidance:g}",
                    seeds=f"1000000 to {1_000_000 + settings.samples - 1}",
                ).save(path)
            seconds = time.perf_counter() - start
            row = compare(test_problem, test_noise, test_reference, name, fitted.load(path)) | {"seconds": seconds}
            fitted_to = f"{row['fitted']:.4f} fitted, {row['best_fixed']:.4f} best fixed ({row['best_name']})"
            ratios = f"ratio {row['ratio']:.2f}, of the median sample {row['median_ratio']:.2f}"
            print(f"{name:10} {steps:3} steps: {fitted_to}, {ratios}, {seconds:.0f} s", flush=True)
            found.append(row)
    (run / "grids" / "fitted.json").write_text(json.dumps(found, indent=1) + "\n")
    return found


def make_problem(
    trained: generation.TrainedRun, world: Any, scale: float, samples: int, seed: int
) -> tuple[sampling.Problem, jax.Array]:
    """The guided model on GenEval prompts of a world, and noise for them."""
    scorer = geneval_scores.Scorer(world, per_task=-(-samples // 6), seed=seed)
    order = np.random.default_rng(seed).permutation(len(scorer.prompts))[:samples]
    cond, null = generation.encode(trained, [scorer.prompts[i].text for i in order])
    denoise = program.make_denoiser(
        trained.network, trained.params, trained.objective, null, program.kind_of(scale), scale, None
    )
    noise = sampling.initial_noise(seed + np.arange(samples), trained.latent_shape)
    return sampling.Problem(denoise, cond, trained.objective.schedule), noise


def fine_ends(problem: sampling.Problem, noise: jax.Array, steps: int = 1000) -> jax.Array:
    """Where the path of the benchmark's reference ends."""
    walk = fitted.Program(problem, noise, step_benchmark.REFERENCE, batch_size=64)
    return jnp.asarray(walk.ends(np.asarray(time_grids.uniform(steps))))


def compare(
    problem: sampling.Problem, noise: jax.Array, reference: jax.Array, name: str, grid: fitted.FittedGrid
) -> dict[str, Any]:
    """Latent RMSE of a fitted grid and of every fixed one with as many steps, and how samples fare one by one."""
    walk = fitted.Program(problem, noise, sampling.named(name), batch_size=64)

    def squares(times: Any) -> np.ndarray:
        error = walk.ends(np.asarray(times)) - np.asarray(reference)
        return np.mean(np.square(error, dtype=np.float64), axis=tuple(range(1, error.ndim)))

    grids = fitted.fixed_grids(grid.num_steps, problem.schedule)
    of_fixed, of_fitted = {kind: squares(times) for kind, times in grids.items()}, squares(grid.times)
    fixed = {kind: float(np.sqrt(np.mean(each))) for kind, each in of_fixed.items()}
    best = min(fixed, key=lambda kind: fixed[kind])
    mine = float(np.sqrt(np.mean(of_fitted)))
    return {
        "sampler": name,
        "steps": grid.num_steps,
        "nfe": grid.nfe,
        "fitted": mine,
        "best_fixed": fixed[best],
        "best_name": best,
        "ratio": mine / fixed[best],
        "median_ratio": float(np.median(np.sqrt(of_fitted / of_fixed[best]))),  # sample by sample
        "fixed": fixed,
        "times": grid.times,
    }


def main(arguments: list[str]) -> None:
    """Measures the samplers, writes the report, and fits the grids."""
    settings = config.override(CONFIG, arguments)
    command = " ".join(["python -m experiments.studies.sampler_steps", *arguments])
    print(step_report.write(step_benchmark.run(settings.run, settings.grid, command=command)))
    fit_grids(settings)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"sampler_steps: {error}")
