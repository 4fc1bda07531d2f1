"""The `nova` command: `nova generate`, `nova doctor`, `nova weights`.

Each command is a frozen dataclass, read by tyro, whose `run` imports what it needs: `nova --help` must answer within a
second, and jax alone takes longer than that.
"""

import dataclasses
import json
import pathlib
import sys
from typing import Annotated, Literal

import tyro


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """Draw pictures with a trained run: one PNG per prompt and seed, prompt and seed in its metadata."""

    prompts: Annotated[tuple[str, ...], tyro.conf.Positional]
    """What to draw."""
    run: pathlib.Path
    """The run folder of a trained text-to-image experiment."""
    out: pathlib.Path | None = None
    """Where the pictures go; RUN/generated when not given."""
    seed: int = 0
    """Seed of the first picture of each prompt; the others count up from it."""
    count: int = 1
    """Pictures per prompt."""
    num_steps: int = 25
    """Sampler steps; Heun evaluates the network twice in each."""
    guidance_scale: float = 4.0
    """Classifier-free guidance scale; 1 is no guidance and costs half."""
    sampler: Literal["euler", "heun"] = "heun"
    """The solver."""
    upscale: int = 1
    """Whole-number enlargement of the saved PNG, by repeated pixels."""

    def execute(self) -> None:
        """Loads the run, samples, writes the PNGs and prints their paths."""
        from nova_jax import inference

        trained = inference.load_run(self.run)
        prompts = [prompt for prompt in self.prompts for _ in range(self.count)]
        seeds = [self.seed + i for _ in self.prompts for i in range(self.count)]
        settings = inference.SamplingSettings(
            num_steps=self.num_steps, guidance_scale=self.guidance_scale, sampler=self.sampler
        )
        pixels = inference.generate(trained, prompts, seeds, settings)
        paths = inference.save_pngs(self.out or self.run / "generated", pixels, prompts, seeds, settings, self.upscale)
        print("\n".join(map(str, paths)))


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

        module, params = weights.load(self.folder)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(f"{type(module).__name__}: {count:,} parameters in {len(jax.tree.leaves(params))} arrays")
        if self.out:
            weights.save(module, params, self.out, dtype=self.dtype)
            print(self.out)


COMMANDS = {"generate": Generate, "doctor": Doctor, "weights": Weights}


def main(argv: list[str] | None = None) -> None:
    """Entry point of the `nova` command; errors a user can mend are one sentence and a non-zero exit code."""
    command = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="nova", description=__doc__, args=argv)  # pyright: ignore[reportCallIssue, reportArgumentType]
    try:
        command.execute()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"nova: {error}")
