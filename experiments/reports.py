"""What an experiment shows when it is done: scores on the terminal, images and curves in its report.html."""

import dataclasses
import json
import sys
import time
from typing import Any

import numpy as np

from data_pipelines.scenes import source
from data_pipelines.scenes.exams import geneval_scores
from experiments import image_vae
from nova_jax import atomic, distillation, environment, experiment, generation
from nova_jax import config as configs
from nova_jax.evaluation import plots, report, task_evaluation, task_report

SETTINGS = generation.SamplingSettings(sampler="heun", num_steps=12, guidance_scale=2.0)
PER_TASK = 128
CEILING_SCENES = 500
PER_PROMPT = 4
STUDENT_STEPS = (1, 2, 4, 8)


def finish_scenes(config: experiment.TrainConfig, result: experiment.Result) -> None:
    """Scores a model of the scenes world on GenEval's six tasks, with ceilings, and writes its report."""
    trained = generation.load_run(result.directory)
    start = time.time()
    scored = score(trained, config.data.scorer(PER_TASK), SETTINGS)
    seconds = time.time() - start
    ceilings = measure_ceilings(trained, config.data.source)
    values = [
        report.Score(name, task.rate, task.low, task.high, task.chance, task.n)
        for name, task in scored.summary.tasks.items()
    ]
    print_scores(scored, ceilings)
    examples = [i for task in scored.summary.tasks for i in _first(scored, task, 8)]
    sections = {
        "Scores": [
            "Images drawn for the prompts of each task are read back by a deterministic parser and judged by "
            "GenEval's rules. Whiskers are 95 % Wilson intervals; the dotted line is chance: what images of "
            "unrelated scenes would score.",
            report.scores(values),
            report.table(
                ["ceiling", "read back right", "interval", "images"],
                [[name, c.rate, f"{c.low:.3f} to {c.high:.3f}", c.n] for name, c in ceilings.items()],
            ),
            f"{len(scored.pictures)} images in {seconds:.0f} s: {_describe(SETTINGS)}.",
        ],
        "Scored images": [
            report.images(
                [scored.pictures[i] for i in examples],
                [scored.prompts[i].text for i in examples],
                zoom=3,
                verdicts=[scored.judged[i].correct for i in examples],
            )
        ],
    }
    write(config, result, trained, sections)
    scores = {name: task._asdict() for name, task in scored.summary.tasks.items()}
    found = {
        "command": " ".join([f"python -m experiments.{config.name}", *sys.argv[1:]]),
        "seed": config.seed,
        "samples": int(result.state.step) * config.batch_size,
        "seconds": {"training": image_vae.training_seconds(result.directory), "scoring": round(seconds, 1)},
        "sampling": configs.to_dict(SETTINGS),
        "environment": environment.describe(),
        "scores": scores,
        "overall": scored.summary.overall,
        "ceilings": {k: vars(c) for k, c in ceilings.items()},
    }
    (result.directory / "scores.json").write_text(json.dumps(found, indent=1) + "\n")


def finish_exam(config: experiment.TrainConfig, result: experiment.Result, *, sheet: tuple[str, ...]) -> None:
    """Examines a run on every task, prints the table, and writes its report; `nova evaluate` does it again.

    Args:
        config: of the run.
        result: of the run.
        sheet: the parts of the exam that sheet.png shows.
    """
    command = f"nova evaluate --run {result.directory}"
    found = task_evaluation.run(result.directory, overwrite=True, command=command)
    print(task_evaluation.table(found))
    task_report.save_sheet(found, found.folder / "sheet.png", sheet)
    print(f"\nreport: {task_report.write(found)}")


def finish_captioned(config: experiment.TrainConfig, result: experiment.Result) -> None:
    """Draws the preview's prompts and writes the report of a model of captioned images."""
    write(config, result, generation.load_run(result.directory), {})


def finish_student(config: experiment.TrainConfig, result: experiment.Result) -> None:
    """Scores a student at every number of steps beside its teacher, and writes its report with both side by side."""
    trained, teacher = generation.load_run(result.directory), generation.load_run(config.teacher or "")
    drawers = {"teacher, 50 steps": (teacher, teacher_settings(trained.objective))} | {
        f"student, {settings.num_steps} step{'s' * (settings.num_steps > 1)}": (trained, settings)
        for settings in student_settings(trained)
    }
    prompts = [prompt for prompt in config.preview.prompts for _ in range(2)] if config.preview else []
    seeds = [seed % 2 for seed in range(len(prompts))]
    sections: dict[str, Any] = {
        name: [
            _describe(settings) + ".",
            report.images(generation.generate(run, prompts, seeds, settings), prompts, zoom=2),
        ]
        for name, (run, settings) in drawers.items()
    }
    if scorer := config.data.scorer(PER_TASK):
        found = {name: score(run, scorer, settings).summary for name, (run, settings) in drawers.items()}
        tasks = list(next(iter(found.values())).tasks)
        rows = [
            [name, *(summary.tasks[task].rate for task in tasks), summary.overall] for name, summary in found.items()
        ]
        for row in rows:
            print(f"{row[0]:20}" + "".join(f"{value:8.3f}" for value in row[1:]))
        sections = {"Scores": [report.table(["", *tasks, "overall"], rows)], **sections}
        record = {
            name: {task: score._asdict() for task, score in summary.tasks.items()} for name, summary in found.items()
        }
        (result.directory / "scores.json").write_text(json.dumps(record, indent=1) + "\n")
    write(config, result, trained, sections)


def teacher_settings(method: distillation.Method) -> generation.SamplingSettings:
    """What a student is held against: its teacher in 50 steps, guided as the student has learnt it."""
    return generation.SamplingSettings(sampler="euler", num_steps=50, guidance_scale=method.guidance.scale)


def student_settings(trained: generation.TrainedRun) -> list[generation.SamplingSettings]:
    """One, two, four and eight steps, as far as the student knows them."""
    known = trained.objective.trained_steps or STUDENT_STEPS
    default = generation.settings_for(trained)
    return [dataclasses.replace(default, num_steps=steps) for steps in STUDENT_STEPS if steps in known]


def score(
    trained: generation.TrainedRun, scorer: geneval_scores.Scorer, settings: generation.SamplingSettings
) -> geneval_scores.Scored:
    """GenEval's six tasks."""
    return scorer.score(lambda prompts, seeds: generation.generate(trained, prompts, list(seeds), settings))


def measure_ceilings(trained: generation.TrainedRun, scenes: source.Scenes) -> dict[str, geneval_scores.Ceiling]:
    """What the parser reads on held-out ground truth and on its reconstructions: no generated image can do better."""
    held_out = image_vae.under_another_seed(scenes)
    truth = np.stack([held_out[i]["pixels"] for i in range(CEILING_SCENES)])
    rebuilt = image_vae.reconstruct(trained.codec, trained.codec_params, truth)
    return {
        "ground truth": held_out.read_back(truth),
        "reconstructions": held_out.read_back(rebuilt),
    }


def print_scores(scored: geneval_scores.Scored, ceilings: dict[str, geneval_scores.Ceiling]) -> None:
    """The table of the report, for the terminal."""
    print(f"\n{'task':20} {'score':>7}   95 % interval   chance     n")
    for name, task in scored.summary.tasks.items():
        print(f"{name:20} {task.rate:7.3f}   {task.low:.3f} - {task.high:.3f}   {task.chance:6.3f}  {task.n:4}")
    print(f"{'overall':20} {scored.summary.overall:7.3f}")
    for name, ceiling in ceilings.items():
        print(f"{'parser on ' + name:26} {ceiling.rate:.4f}   ({ceiling.n} held-out scenes)")


def write(
    config: experiment.TrainConfig, result: experiment.Result, trained: generation.TrainedRun, sections: dict[str, Any]
) -> None:
    """Writes report.html: samples, the given sections, loss curves, config and environment."""
    prompts = [prompt for prompt in config.preview.prompts for _ in range(PER_PROMPT)] if config.preview else []
    seeds = [seed % PER_PROMPT for seed in range(len(prompts))]
    settings = generation.settings_for(trained) if config.teacher else SETTINGS
    pictures = generation.generate(trained, prompts, seeds, settings) if prompts else []
    record = json.loads((result.directory / "config.json").read_text())
    lines = [json.loads(line) for line in (result.directory / "log.jsonl").read_text().splitlines()]
    kept = {key: record[key] for key in ("parameters", "flops_per_step", "peak_flops", "peak_source")}
    speed = [line["images_per_s"] for line in lines if "images_per_s" in line]
    document = report.page(
        config.name,
        {
            "Samples": [
                f"Seeds 0 to {PER_PROMPT - 1} of each prompt; {_describe(settings)}.",
                report.images(pictures, prompts, zoom=3),
            ],
            **sections,
            "Loss": [plots.draw(loss_curves(lines), x_label="step", y_label="loss", log_y=True)],
            "Run": [
                report.command(f"python -m experiments.{config.name}"),
                report.facts(
                    {"steps": lines[-1]["step"], "images/s (median)": float(np.median(speed)) if speed else "n/a"}
                    | kept
                ),
            ],
            "Environment": [report.facts(environment.describe())],
            "Config": [report.facts(record["config"])],
        },
        subtitle=f"{record['parameters']:,} parameters, {lines[-1]['step']:,} steps of {config.batch_size}",
    )
    atomic.write(result.directory / "report.html", document)
    print(f"\nreport: {result.directory / 'report.html'}")


def loss_curves(lines: list[dict[str, Any]]) -> list[plots.Series]:
    """The loss over steps, smoothed, and the loss in each bin of the time axis."""
    steps = [line["step"] for line in lines]
    window = max(1.0, len(lines) / 40)
    curves = [plots.Series("loss", steps, plots.smooth([line["loss"] for line in lines], window))]
    bins = len(lines[0].get("loss_by_time", []))
    for i in range(bins):
        shares = [line["share_by_time"][i] or float("nan") for line in lines]
        values = [line["loss_by_time"][i] / share for line, share in zip(lines, shares, strict=True)]
        curves.append(plots.Series(f"t in {i / bins:g} .. {(i + 1) / bins:g}", steps, plots.smooth(values, window)))
    return curves


def _first(scored: geneval_scores.Scored, task: str, count: int) -> list[int]:
    """Indices of the first images of one task: not chosen."""
    return [i for i, prompt in enumerate(scored.prompts) if prompt.task == task][:count]


def _describe(settings: generation.SamplingSettings) -> str:
    return f"{settings.sampler}, {settings.num_steps} steps, guidance {settings.guidance_scale:g}"
