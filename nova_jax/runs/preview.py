"""What a run in training samples: its EMA parameters as a `TrainedRun`, and a grid of images every so many steps."""

from collections.abc import Callable

import jax

from nova_jax import config as configs
from nova_jax import generation
from nova_jax.parallel import distributed, rules
from nova_jax.runs.config import TrainConfig, with_text_encoder
from nova_jax.runs.load import TrainedRun
from nova_jax.training import loop
from nova_jax.types import TrainState


def make_trained_run(config: TrainConfig) -> Callable[[int, TrainState], TrainedRun]:
    """(step, state) -> what draws from the EMA parameters of a run in training, for callbacks.

    It samples on the mesh of the run, where the parameters are: all processes call it, and then sample together.

    Raises:
        ValueError: the run does not draw: its data has no autoencoder.
    """
    config = with_text_encoder(configs.expand_home(config))
    codec = config.data.codec()
    if codec is None:
        raise ValueError(f"{config.name} trains on pixels, without an autoencoder to draw through")
    shape = tuple(config.data.describe()["latent_shape"])
    encoder, mesh = config.data.text_encoder, config.mesh.make()
    codec_params = jax.tree.map(distributed.place, codec[1], rules.shardings(codec[1], mesh))

    def make(step: int, state: TrainState) -> TrainedRun:
        return TrainedRun(
            network=config.model,
            params=state.ema,
            objective=config.objective,
            codec=codec[0],
            codec_params=codec_params,
            latent_shape=shape,
            text_encoder=encoder,
            step=step,
            mesh=mesh,
        )

    return make


def callbacks(config: TrainConfig) -> list[loop.Callback]:
    """Draws the preview's prompts from the EMA parameters."""
    preview = config.preview
    if preview is None or not preview.prompts or config.data.codec() is None:
        return []
    make = make_trained_run(config)
    generation.check_prompts(config.data.text_encoder, preview.prompts)

    def draw(at: int, state: TrainState) -> None:
        prompts = [prompt for prompt in preview.prompts for _ in range(preview.per_prompt)]
        seeds = list(range(preview.per_prompt)) * len(preview.prompts)
        pixels = generation.generate(make(at, state), prompts, seeds, preview.settings)
        path = config.directory / "samples" / f"{at:08d}.png"
        if distributed.is_main():
            generation.save_grid(path, pixels, columns=preview.per_prompt * 4, upscale=preview.upscale)

    return [loop.Callback(preview.every, draw)]
