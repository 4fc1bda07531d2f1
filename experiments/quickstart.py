"""Text to image in minutes on two CPU cores: a DiT learns captioned scenes from scratch while you watch.

    make quickstart
    python -m experiments.quickstart steps=500 run_dir=runs/short
    python -m experiments.quickstart --from-scratch          trains the autoencoder too
    python -m experiments.quickstart --no-student            stops when the model is scored

Writes runs/quickstart: report.html, samples/ (as it learns), log.jsonl, checkpoints/. Then sample prompts of your own:

    nova generate --run runs/quickstart "a red circle left of a blue square" --count 4 --upscale 8

Measured on one of two CPU cores, the other one busy: 21 minutes of training; 1.5 M parameters see 204,800 latents.
GenEval tasks (128 images each): single object 0.88, two objects 0.90, counting 0.75, colours 0.99, position 0.93,
colour attribution 0.89; parser on reconstructions 0.990.
"""

import dataclasses
import sys

from data_pipelines import autoencoders, datasets
from data_pipelines.scenes import source, world
from data_pipelines.scenes.exams import geneval_report
from experiments import distill, image_vae
from nova_jax import experiment
from nova_jax.diffusion import FlowMatching
from nova_jax.evaluation import step_benchmark, step_report
from nova_jax.models.dit import DiT
from nova_jax.models.text import WordTextEncoder
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.training import optimizer

CODEC = "experiments/assets/scenes_vae_32"
STEPS = 3200
PROMPTS = (
    "a circle",
    "a red circle",
    "a blue square",
    "a yellow triangle",
    "a circle and a square",
    "three circles",
    "a square above a circle",
    "a green triangle and a pink circle",
)

# More pairs and fewer colours in captions: half of GenEval's tasks ask for two objects, and most leave colours open.
WORLD = dataclasses.replace(
    world.QUICKSTART, kinds=(0.32, 0.48, 0.18, 0.02), wording=world.Wording(color=0.55, relation=0.5, in_order=1.0)
)

CONFIG = experiment.TrainConfig(
    name="quickstart",
    model=TextToLatent(
        # In minutes a small network that sees many samples beats a large one that sees few. Loops are slow on a CPU, so
        # depth is unrolled.
        dit=DiT(
            width=96,
            depth=6,
            num_heads=2,
            in_channels=16,
            patch_size=(1, 1, 1),
            text_dim=96,
            pooled_dim=96,
            has_absolute_positions=True,
            scan_unroll=6,
        ),
        text_encoder=WordTextEncoder(width=96, depth=1, num_heads=2, length=20, window=7),
    ),
    objective=FlowMatching(),
    data=datasets.CaptionedLatents(source=source.Scenes(WORLD, length=32_000), codec_path=CODEC),
    # A wider network after 300 steps: loss 0.88 with AdamW at 1.5e-3, 0.77 with Muon at 2e-3, 0.68 with Muon at 6e-3.
    # At the rate that Muon needs, AdamW shakes the text path: words are bound to objects late or never (docs/text.md).
    optimizer=optimizer.Muon(peak=7e-3, matrices="hidden", adam_scale=0.25, warmup=50, b2=0.99, schedule="linear"),
    steps=STEPS,
    batch_size=64,
    ema_decay=0.995,
    log_every=20,
    checkpoint_every=1000,
    preview=experiment.Preview(every=500, prompts=PROMPTS),
)


def with_own_codec(config: experiment.TrainConfig) -> experiment.TrainConfig:
    """The same experiment on an autoencoder trained here first, or found trained from an earlier start."""
    vae_config = image_vae.CONFIG
    folder = autoencoders.train(vae_config, autoencoders.under_another_seed(vae_config.data.source))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, codec_path=folder))


def finish(config: experiment.TrainConfig, result: experiment.Result) -> None:
    """Scores the model, distils a student from it, and benchmarks both: quality against evaluations and seconds."""
    geneval_report.write(config, result)
    student = distill.make_config(str(result.directory), distill.DEFAULT_METHOD)
    student = experiment.run(dataclasses.replace(student, steps=min(student.steps, config.steps)))
    grid = step_benchmark.Grid(
        samplers=("euler", "unipc_2"), steps=(2, 4, 8, 16), students=(str(student.directory),), student_steps=(1, 2, 4)
    )
    folder = step_benchmark.run(result.directory, grid, command="python -m experiments.quickstart")
    print(f"report: {step_report.write(folder)}")


if __name__ == "__main__":
    flags = {"--from-scratch", "--no-student"} & set(sys.argv)
    sys.argv = [text for text in sys.argv if text not in flags]
    experiment.main(
        CONFIG,
        geneval_report.write if "--no-student" in flags else finish,
        prepare=with_own_codec if "--from-scratch" in flags else None,
    )
