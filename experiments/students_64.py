"""A teacher of DiT-S/2's size on 64 px scenes and its few-step students, on one GPU.

    python -m experiments.students_64
    python -m experiments.students_64 data.codec_path=CODEC steps=2000

Trains the autoencoder unless a codec is named, then the teacher, then from it a consistency student and from that one a
student by distribution matching; ends with the step benchmark of all three. Students learn for a quarter of the
teacher's steps.
"""

import dataclasses
import functools

import jax.numpy as jnp

from data_pipelines import autoencoders, datasets
from data_pipelines.scenes.exams import geneval_report
from experiments import distill, image_vae, scenes
from nova_jax import experiment
from nova_jax.diffusion import FlowMatching, time_sampling
from nova_jax.evaluation import step_benchmark, step_report
from nova_jax.models import presets
from nova_jax.models.text_to_latent import TextToLatent

STEPS = 4000
VAE = dataclasses.replace(image_vae.SMALL_VAE, latent_channels=32, width=128)
STUDENTS = ("consistency", "dmd2")  # each starts from the one before

CONFIG = dataclasses.replace(
    scenes.CONFIG,
    name="students_64",
    model=TextToLatent(
        dit=presets.dit(
            "S/2",
            in_channels=32,
            patch_size=(1, 1, 1),
            text_dim=128,
            pooled_dim=128,
            has_absolute_positions=True,
            dtype=jnp.bfloat16,
        ),  # sixty-four tokens an image
        text_encoder=scenes.CONFIG.model.text_encoder,
    ),
    objective=FlowMatching(time_sampling=time_sampling.Shifted(shift=2.0)),
    data=datasets.CaptionedLatents(source=scenes.SCENES, codec_path="", processes=8),
    optimizer=dataclasses.replace(scenes.CONFIG.optimizer, peak=3e-3, warmup=200),
    steps=STEPS,
    batch_size=256,
)


def finish(config: experiment.TrainConfig, result: experiment.Result) -> None:
    """Scores the teacher, distils the students one from the other, and benchmarks all of them."""
    geneval_report.write(config, result)
    steps, before, students = max(1, config.steps // 4), None, []
    for method in STUDENTS:
        student = distill.make_config(str(result.directory), method)
        schedule = dataclasses.replace(student.optimizer, peak=student.optimizer.peak / 3)
        student = dataclasses.replace(student, steps=steps, optimizer=schedule, start_from=before)
        before = str(experiment.run(student).directory)
        students.append(before)
    grid = step_benchmark.Grid(
        samplers=("euler", "unipc_2"), steps=(2, 4, 8, 16), students=tuple(students), student_steps=(1, 2, 4)
    )
    command = f"python -m experiments.{config.name} steps={config.steps}"
    print(f"report: {step_report.write(step_benchmark.run(result.directory, grid, command=command))}")


prepare = functools.partial(
    autoencoders.with_codec,
    make_config=functools.partial(image_vae.make_config, steps=5000, kl=0.02, vae=VAE),
    source=scenes.CODEC_SCENES,
    held_out=autoencoders.under_another_seed(scenes.CODEC_SCENES),
)

if __name__ == "__main__":
    experiment.main(CONFIG, finish, prepare=prepare)
