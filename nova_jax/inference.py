"""A trained run as a function from prompts to pictures.

The run folder holds everything: the resolved config (network, objective, text length, latent shape), the checkpoints,
and in `codec/` the autoencoder whose latents were learnt.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, PngImagePlugin

from nova_jax import config, sampling, weights
from nova_jax.diffusion import conditioning, denoiser, guidance
from nova_jax.models import text
from nova_jax.sampling import noise, time_grids
from nova_jax.training import checkpoint
from nova_jax.types import Conditioning, Params

CHUNK = 16  # pictures per call: a fixed size, so that a picture does not depend on how many are asked for
CODEC_FOLDER = "codec"
SAMPLERS = {"euler": sampling.Euler(), "heun": sampling.Heun()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How pictures are drawn: solver, number of steps, guidance."""

    sampler: Literal["euler", "heun"] = "heun"
    num_steps: int = 25
    guidance_scale: float = 4.0

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler is {self.sampler!r}; choose one of {', '.join(SAMPLERS)}")
        if self.num_steps < 1:
            raise ValueError(f"num_steps is {self.num_steps}; it must be at least 1")


class TextToImage(NamedTuple):
    """All that is needed to draw: the network with its parameters, the codec with its own, and the shapes."""

    network: Any
    params: Params
    objective: Any
    codec: Any
    codec_params: Params
    latent_shape: tuple[int, int, int, int]  # f h w c
    text_length: int


def load_run(run_dir: str | pathlib.Path, step: int | None = None) -> TextToImage:
    """Loads the EMA parameters of a run's newest good checkpoint (or of `step`).

    Raises:
        FileNotFoundError: the folder is not a run folder, or holds no checkpoint yet.
        ValueError: the run did not train a text-to-image network.
    """
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / "config.json").is_file():
        raise FileNotFoundError(f"{run_dir} is not a run folder: it has no config.json; start a run first")
    saved = json.loads((run_dir / "config.json").read_text())
    if "text_length" not in saved["data"]:
        raise ValueError(f"{run_dir} trained {saved['config']['name']!r}, which is not a text-to-image run")
    _, params = checkpoint.read_ema(run_dir / "checkpoints", step=step)
    codec, codec_params = weights.load(run_dir / CODEC_FOLDER)
    return TextToImage(
        network=config.from_dict(saved["config"]["model"]),
        params=params,
        objective=config.from_dict(saved["config"]["objective"]),
        codec=codec,
        codec_params=codec_params,
        latent_shape=tuple(saved["data"]["latent_shape"]),
        text_length=saved["data"]["text_length"],
    )


def generate(
    trained: TextToImage,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings = SamplingSettings(),
) -> np.ndarray:
    """Draws one picture per (prompt, seed).

    A picture depends on its own prompt and seed alone: the starting noise comes from the seed, and the network always
    sees batches of the same size.

    Returns:
        uint8 pixels (b, f, h, w, 3).
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: give one seed per prompt")
    draw = _make_draw(trained.network, trained.objective, trained.codec, settings, trained.latent_shape)
    pictures = []
    for start in range(0, len(prompts), CHUNK):
        chunk = list(prompts[start : start + CHUNK])
        padded = chunk + [""] * (CHUNK - len(chunk))
        padded_seeds = list(seeds[start : start + CHUNK]) + [0] * (CHUNK - len(chunk))
        ids, mask = text.encode_bytes(padded, trained.text_length)
        pixels = draw(trained.params, trained.codec_params, ids, mask, np.asarray(padded_seeds, np.uint32))
        pictures.append(np.asarray(pixels)[: len(chunk)])
    return np.concatenate(pictures)


@functools.lru_cache(maxsize=8)
def _make_draw(network: Any, objective: Any, codec: Any, settings: SamplingSettings, latent_shape: tuple) -> Any:
    """The jitted path from token ids and seeds to uint8 pixels."""

    def draw(params: Params, codec_params: Params, ids: jax.Array, mask: jax.Array, seeds: jax.Array) -> jax.Array:
        cond = network.apply({"params": params}, Conditioning(text_ids=ids, text_mask=mask), method="encode_text")
        nothing = conditioning.null(Conditioning(text_ids=ids, text_mask=mask), parts=("text",))
        null = network.apply({"params": params}, nothing, method="encode_text")

        def apply(params: Params, x: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
            return network.apply({"params": params}, x, t, cond)

        denoise = denoiser.make_denoiser(apply, params, objective.schedule, objective.prediction)
        guided = guidance.classifier_free(denoise, settings.guidance_scale, lambda _: null)
        sampled = sampling.sample(
            guided,
            noise.initial_noise(seeds, latent_shape),
            sampler=SAMPLERS[settings.sampler],
            times=time_grids.uniform(settings.num_steps),
            schedule=objective.schedule,
            cond=cond,
        )
        pixels = codec.decode(codec_params, codec.denormalize(sampled.x))
        return to_uint8(pixels)

    return jax.jit(draw)


def save_grid(path: str | pathlib.Path, pixels: np.ndarray, *, columns: int, upscale: int = 1) -> pathlib.Path:
    """Writes the first frames of many pictures as one PNG, `columns` in a row, two pixels apart."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count, _, height, width, _ = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        sheet[top : top + height, left : left + width] = picture[0]
    image = Image.fromarray(sheet)
    image.resize((image.width * upscale, image.height * upscale), Image.Resampling.NEAREST).save(path)
    return path


def to_uint8(pixels: jax.Array) -> jax.Array:
    """Pixels of -1 .. 1 to whole numbers of 0 .. 255."""
    return jnp.round((jnp.clip(pixels, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def save_pngs(
    folder: str | pathlib.Path,
    pixels: np.ndarray,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    upscale: int = 1,
) -> list[pathlib.Path]:
    """Writes the first frame of each picture as PNG, with prompt, seed and settings in its text chunks."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for picture, prompt, seed in zip(pixels, prompts, seeds, strict=True):
        info = PngImagePlugin.PngInfo()
        for key, value in {"prompt": prompt, "seed": seed, **dataclasses.asdict(settings)}.items():
            info.add_itxt(key, str(value))
        image = Image.fromarray(picture[0])
        image = image.resize((image.width * upscale, image.height * upscale), Image.Resampling.NEAREST)
        slug = "-".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())[:60] or "empty"
        paths.append(folder / f"{slug}-seed{seed}.png")
        image.save(paths[-1], pnginfo=info)
    return paths
