"""What a run in training samples: its EMA parameters as a `TrainedRun`, and a grid of images every so many steps."""

from collections.abc import Callable

from nova_jax import config as configs
from nova_jax import generation
from nova_jax.parallel import distributed
from nova_jax.runs.config import TrainConfig, with_text_encoder
from nova_jax.runs.load import TrainedRun
from nova_jax.training import loop
from nova_jax.types import TrainState


def make_trained_run(config: TrainConfig) -> Callable[[int, TrainState], TrainedRun]:
    """(step, state) -> what draws from the EMA parameters of a run in training, for callbacks; all processes call it.

    Raises:
        ValueError: the run does not draw: its data has no autoencoder.
    """
    config = with_text_encoder(configs.expand_home(config))
    codec = config.data.codec()
    if codec is None:
        raise ValueError(f"{config.name} trains on pixels, without an autoencoder to draw through")
    shape = tuple(config.data.describe()["latent_shape"])
    encoder = config.data.text_encoder

    def make(step: int, state: TrainState) -> TrainedRun:
        return TrainedRun(
            network=config.model,
            params=distributed.whole(state.ema),
            objective=config.objective,
            codec=codec[0],
            codec_params=codec[1],
            latent_shape=shape,
            text_encoder=encoder,
            step=step,
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
        trained = make(at, state)
        if not distributed.is_main():
            return
        prompts = [prompt for prompt in preview.prompts for _ in range(preview.per_prompt)]
        seeds = list(range(preview.per_prompt)) * len(preview.prompts)
        with distributed.alone():
            pixels = generation.generate(trained, prompts, seeds, preview.settings)
        path = config.directory / "samples" / f"{at:08d}.png"
        generation.save_grid(path, pixels, columns=preview.per_prompt * 4, upscale=preview.upscale)

    return [loop.Callback(preview.every, draw)]
