"""The report.html of a distilled run: the student at every number of steps beside its teacher."""

import dataclasses
import functools
import json
from typing import Any

from nova_jax import distillation, generation
from nova_jax.evaluation import report, run_report
from nova_jax.runs.config import TrainConfig
from nova_jax.runs.train import Result

PER_TASK = 128
STEPS = (1, 2, 4, 8)
PER_PROMPT = 2


def write(config: TrainConfig, result: Result) -> None:
    """Samples and, where the data can score them, scores of both; scores.json has the scores as well."""
    student, teacher = generation.load_run(result.directory), generation.load_run(config.teacher or "")
    models = {"teacher, 50 steps": (teacher, teacher_settings(student.objective))} | {
        f"student, {settings.num_steps} step{'s' * (settings.num_steps > 1)}": (student, settings)
        for settings in student_settings(student)
    }
    prompts = [prompt for prompt in config.preview.prompts for _ in range(PER_PROMPT)] if config.preview else []
    seeds = [seed % PER_PROMPT for seed in range(len(prompts))]
    sections: dict[str, Any] = {
        name: [
            run_report.describe(settings) + ".",
            report.images(generation.generate(run, prompts, seeds, settings), prompts, zoom=2),
        ]
        for name, (run, settings) in models.items()
    }
    if scorer := config.data.scorer(PER_TASK):
        found = {
            name: scorer.score(functools.partial(generation.generate, run, settings=settings)).summary
            for name, (run, settings) in models.items()
        }
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
    run_report.write(config, result, sections)


def teacher_settings(method: distillation.Method) -> generation.SamplingSettings:
    """What a student is held against: its teacher in 50 steps, guided as the student has learnt it."""
    return generation.SamplingSettings(sampler="euler", num_steps=50, guidance_scale=method.guidance.scale)


def student_settings(student: generation.TrainedRun) -> list[generation.SamplingSettings]:
    """One, two, four and eight steps, as far as the student knows them."""
    known = student.objective.trained_steps or STEPS
    default = generation.settings_for(student)
    return [dataclasses.replace(default, num_steps=steps) for steps in STEPS if steps in known]
