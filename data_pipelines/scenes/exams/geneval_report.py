"""GenEval's six tasks at the end of a run on scenes, with ceilings: on the terminal, in report.html and scores.json."""

import functools
import json
import sys
import time

import numpy as np

from data_pipelines import autoencoders
from data_pipelines.scenes import source
from data_pipelines.scenes.exams import geneval_scores
from nova_jax import config as configs
from nova_jax import environment, experiment, generation
from nova_jax.evaluation import report, run_report
from nova_jax.runs import record

PER_TASK = 128
CEILING_SCENES = 500
SHOWN = 8  # images of each task


def write(config: experiment.TrainConfig, result: experiment.Result) -> None:
    """Scores a model of the scenes world, with ceilings, and writes its report."""
    trained = generation.load_run(result.directory)
    start = time.time()
    generate = functools.partial(generation.generate, trained, settings=run_report.SETTINGS)
    scored = config.data.scorer(PER_TASK).score(generate)
    seconds = time.time() - start
    ceilings = measure_ceilings(trained, config.data.source)
    tasks = scored.summary.tasks
    print_scores(scored, ceilings)
    values = [report.Score(name, task.rate, task.low, task.high, task.chance, task.n) for name, task in tasks.items()]
    of_task = {name: [i for i, prompt in enumerate(scored.prompts) if prompt.task == name] for name in tasks}
    first = [i for indices in of_task.values() for i in indices[:SHOWN]]  # not chosen
    sections = {
        "Scores": [
            "Images of the prompts of each task are read back by a deterministic parser and judged by GenEval's rules. "
            "Whiskers are 95 % Wilson intervals; the dotted line is chance: what images of unrelated scenes would "
            "score.",
            report.scores(values),
            report.table(
                ["ceiling", "read back right", "interval", "images"],
                [[name, c.rate, f"{c.low:.3f} to {c.high:.3f}", c.n] for name, c in ceilings.items()],
            ),
            f"{len(scored.images)} images in {seconds:.0f} s: {run_report.describe(run_report.SETTINGS)}.",
        ],
        "Scored images": [
            report.images(
                [scored.images[i] for i in first],
                [scored.prompts[i].text for i in first],
                zoom=3,
                verdicts=[scored.judged[i].correct for i in first],
            )
        ],
    }
    run_report.write(config, result, sections)
    found = {
        "command": " ".join([f"python -m experiments.{config.name}", *sys.argv[1:]]),
        "seed": config.seed,
        "samples": int(result.state.step) * config.batch_size,
        "seconds": {"training": record.training_seconds(result.directory), "scoring": round(seconds, 1)},
        "sampling": configs.to_dict(run_report.SETTINGS),
        "environment": environment.describe(),
        "scores": {name: task._asdict() for name, task in tasks.items()},
        "overall": scored.summary.overall,
        "ceilings": {k: vars(c) for k, c in ceilings.items()},
    }
    (result.directory / "scores.json").write_text(json.dumps(found, indent=1) + "\n")


def measure_ceilings(trained: generation.TrainedRun, scenes: source.Scenes) -> dict[str, geneval_scores.Ceiling]:
    """What the parser reads on held-out ground truth and on its reconstructions: no generated image can do better."""
    held_out = autoencoders.under_another_seed(scenes)
    truth = np.stack([held_out[i]["pixels"] for i in range(CEILING_SCENES)])
    rebuilt = autoencoders.reconstruct(trained.codec, trained.codec_params, truth)
    return {"ground truth": held_out.read_back(truth), "reconstructions": held_out.read_back(rebuilt)}


def print_scores(scored: geneval_scores.Scored, ceilings: dict[str, geneval_scores.Ceiling]) -> None:
    """The table of the report, for the terminal."""
    print(f"\n{'task':20} {'score':>7}   95 % interval   chance     n")
    for name, task in scored.summary.tasks.items():
        print(f"{name:20} {task.rate:7.3f}   {task.low:.3f} - {task.high:.3f}   {task.chance:6.3f}  {task.n:4}")
    print(f"{'overall':20} {scored.summary.overall:7.3f}")
    for name, ceiling in ceilings.items():
        print(f"{'parser on ' + name:26} {ceiling.rate:.4f}   ({ceiling.n} held-out scenes)")
