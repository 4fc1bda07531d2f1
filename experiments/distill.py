"""A few-step student of a trained text-to-image run: pick a method, keep everything else.

    python -m experiments.distill teacher=runs/quickstart
    python -m experiments.distill teacher=runs/quickstart method=shortcut steps=500 objective.guidance.scale=3
    python -m experiments.distill teacher=runs/quickstart method=dmd2 start_from=runs/quickstart_consistency
    python -m experiments.distill teacher=runs/emoji method=mean_flow run_dir=runs/emoji_student

Measured on the quickstart model, two idle CPU cores, 64 images a task (docs/distillation.md has the other methods):
`consistency`, 400 steps, 4 minutes 24 seconds with all scores, a quarter of the teacher's training FLOPs: single object
0.50, 0.73, 0.70 in one, two, four steps to the teacher's 0.75 in 50 guided ones; colours 0.84, 0.97, 0.97 to 1.00.

Data, network and autoencoder are those of the teacher's own config; the network gains a target time. The student goes
to TEACHER_METHOD unless `run_dir` says otherwise, resumes like any run, and is drawn from with `nova generate --run`.
"""

import dataclasses
import sys
from typing import Any

from nova_jax import config as configs
from nova_jax import distillation, experiment
from nova_jax.diffusion import time_sampling
from nova_jax.evaluation import student_report
from nova_jax.runs import student
from nova_jax.training import optimizer as optimizers

GUIDANCE = distillation.Guidance(scale=2.0)
PAIRS = distillation.AnyPair(time_sampling=time_sampling.Uniform(), same_share=0.25, full_share=0.1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
    """A method with the length and the optimizer that suit the quickstart model."""

    method: distillation.Method
    steps: int = 500
    optimizer: optimizers.Optimizer = optimizers.Muon(peak=3e-3, warmup=50, b2=0.99)


DEFAULT_METHOD = "consistency"
METHODS: dict[str, Preset] = {
    "guidance": Preset(method=distillation.GuidanceDistillation(guidance=GUIDANCE)),
    "progressive": Preset(method=distillation.Progressive(guidance=GUIDANCE, first_steps=16, stage_length=300)),
    "shortcut": Preset(method=distillation.Shortcut(guidance=GUIDANCE, max_steps=32)),
    # Exact derivatives of a network that embeds 1000 t grow without bound here (loss 2e4 after 60 steps).
    "mean_flow": Preset(method=distillation.MeanFlow(guidance=GUIDANCE, pairs=PAIRS, difference=0.02)),
    "consistency": Preset(
        method=distillation.DiscreteConsistency(guidance=GUIDANCE, num_intervals=32, solver="euler", target="ema"),
        steps=400,
    ),
    # From a student that is already good: start_from=RUN.
    "dmd2": Preset(
        method=distillation.DMD2(
            guidance=GUIDANCE,
            num_steps=(1, 1, 2, 4),
            critic_updates=2,
            critic_optimizer=optimizers.AdamW(peak=1e-3, warmup=0),
        ),
        steps=450,
        optimizer=optimizers.AdamW(peak=6e-4, warmup=20),
    ),
    "joint": Preset(
        method=distillation.Joint(
            guidance=GUIDANCE,
            flow=distillation.MeanFlow(pairs=PAIRS, difference=0.02),
            matching=distillation.DMD2(num_steps=(4,), critic_updates=2),
            matching_scale=0.1,
        ),
        optimizer=optimizers.Muon(peak=1e-3, warmup=50, b2=0.99),
    ),
}


def make_config(teacher: str, method: str) -> experiment.TrainConfig:
    """The student's run, from the teacher's config and a preset.

    Raises:
        ValueError: an unknown method.
        FileNotFoundError: the teacher is no run.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    preset = METHODS[method]
    return student.make_config(teacher, preset.method, name=method, optimizer=preset.optimizer, steps=preset.steps)


def split_arguments(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """`teacher=` and `method=`, which choose the config, and the overrides that change it."""
    chosen = {"teacher": "runs/quickstart", "method": DEFAULT_METHOD}
    rest = []
    for text in arguments:
        name, _, value = text.partition("=")
        if name in chosen:
            chosen[name] = configs.expand_home(value)
        else:
            rest.append(text)
    return chosen, rest


if __name__ == "__main__":
    chosen, sys.argv[1:] = split_arguments(sys.argv[1:])
    try:
        config = make_config(**chosen)
    except (ValueError, OSError) as error:
        sys.exit(f"distill: {error}")
    experiment.main(config, student_report.write)
