"""A trained run as a function from prompts to pictures.

The run folder holds everything: the resolved config (network, objective, text length, latent shape), the checkpoints,
and in `codec/` the autoencoder whose latents were learnt.
"""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, PngImagePlugin

from nova_jax import config, distillation, sampling, weights
from nova_jax.diffusion import conditioning, denoiser, guidance
from nova_jax.models import text
from nova_jax.sampling import named, noise, time_grids
from nova_jax.training import checkpoint
from nova_jax.types import Conditioning, Denoised, Denoiser, Params, Sampled

CHUNK = 16  # pictures per call: a fixed size, so that a picture does not depend on how many are asked for
ROOM = 32  # steps that a compiled program has room for, at least; fewer cost nothing more
CODEC_FOLDER = "codec"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How pictures are drawn.

    Attributes:
        sampler: A name from `sampling.named.SAMPLERS`.
        num_steps: Of the sampler; how often it evaluates the network in each is its own affair.
        guidance_scale: Of classifier-free guidance; 1 is none, and costs half.
        guidance_interval: (low, high), the times within which to guide; None: all.
        time_grid: A name that `sampling.time_grids.named` knows, or the JSON file of a fitted grid.
    """

    sampler: str = "heun"
    num_steps: int = 25
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] | None = None
    time_grid: str = "uniform"

    def __post_init__(self) -> None:
        named.get(self.sampler, self.num_steps)
        if not self.guidance_scale >= 0:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more (1 is no guidance)")


class TrainedRun(NamedTuple):
    """All that is needed to draw: the network with its parameters, the codec with its own, and the shapes.

    `objective` is what the network was trained with; a distillation method makes it a few-step student.
    """

    network: Any
    params: Params
    objective: Any
    codec: Any
    codec_params: Params
    latent_shape: tuple[int, int, int, int]  # f h w c
    text_length: int
    step: int = 0  # training steps behind the parameters


def load_run(run_dir: str | pathlib.Path, step: int | None = None) -> TrainedRun:
    """Loads the EMA parameters of a run's newest good checkpoint (or of `step`).

    Raises:
        FileNotFoundError: the folder is not a run folder, or holds no checkpoint yet.
        ValueError: the run did not train a network that draws from a text.
    """
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / "config.json").is_file():
        raise FileNotFoundError(f"{run_dir} is not a run folder: it has no config.json; start a run first")
    saved = json.loads((run_dir / "config.json").read_text())
    if "text_length" not in saved["data"]:
        raise ValueError(f"{run_dir} trained {saved['config']['name']!r}, which is no run that draws from a text")
    step, params = checkpoint.read_ema(run_dir / "checkpoints", step=step)
    codec, codec_params = weights.load(run_dir / CODEC_FOLDER)
    return TrainedRun(
        network=config.from_dict(saved["config"]["model"]),
        params=params,
        objective=config.from_dict(saved["config"]["objective"]),
        codec=codec,
        codec_params=codec_params,
        latent_shape=tuple(saved["data"]["latent_shape"]),
        text_length=saved["data"]["text_length"],
        step=step,
    )


def settings_for(trained: TrainedRun) -> SamplingSettings:
    """How a run draws when nothing else is asked for: a student as its method says, in four steps or what it knows."""
    method = trained.objective
    if not isinstance(method, distillation.Method):
        return SamplingSettings()
    steps = max((n for n in method.trained_steps or (4,) if n <= 4), default=min(method.trained_steps or (4,)))
    return SamplingSettings(sampler=method.sampler, num_steps=steps, guidance_scale=1.0)


def check_settings(trained: TrainedRun, settings: SamplingSettings) -> None:
    """Refuses what a few-step student has not learnt.

    Raises:
        ValueError: a number of steps outside the trained ones, or guidance on top of what is distilled in.
    """
    method = trained.objective
    if not isinstance(method, distillation.Method):
        return
    known = method.trained_steps
    if known is not None and settings.sampler in ("flow_map", "renoise") and settings.num_steps not in known:
        raise ValueError(
            f"this student of {type(method).__name__} has not learnt num_steps={settings.num_steps}: use one of "
            f"{', '.join(map(str, known))}"
        )
    if not _reads_guidance(trained.network) and settings.guidance_scale != 1:
        raise ValueError(
            f"guidance_scale={settings.guidance_scale:g}, but guidance of {method.guidance.scale:g} is distilled into "
            "this student: use 1"
        )


def generate(
    trained: TrainedRun,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings | None = None,
    *,
    told: Conditioning | None = None,
    negative_prompts: Sequence[str] | None = None,
) -> np.ndarray:
    """Draws one picture per (prompt, seed).

    A picture depends on its own prompt and seed alone: the starting noise comes from the seed, and the network always
    sees batches of the same size.

    Args:
        trained: a run.
        prompts: what to draw.
        seeds: one for each prompt.
        settings: how; None: `settings_for` the run.
        told: what else the network is told, one row each (`tasks.conditions`); None: nothing. Guidance strengthens the
            prompt and the palette alone.
        negative_prompts: what to guide away from, one each; None: from saying nothing.

    Returns:
        uint8 pixels (b, f, h, w, 3).

    Raises:
        ValueError: not one seed for each prompt, a prompt too long, a time grid that there is not, settings that a
            student has not learnt.
        FloatingPointError: a walk ended in NaN or infinity; at which step.
    """
    if len(prompts) != len(seeds):
        raise ValueError(f"{len(prompts)} prompts but {len(seeds)} seeds: give one seed per prompt")
    settings = settings_for(trained) if settings is None else settings
    check_settings(trained, settings)
    grid = time_grids.named(settings.time_grid, settings.num_steps, trained.objective.schedule)
    times = time_grids.pad(grid, max(settings.num_steps, ROOM))
    guided = guidance_of(settings.guidance_scale)
    draw = make_draw(
        trained.network,
        trained.objective,
        named.get(settings.sampler),
        guided,
        settings.guidance_interval,
        trained.latent_shape,
    )
    decode = make_decode(trained.codec)
    pictures = []
    for start in range(0, len(prompts), CHUNK):
        chunk = list(prompts[start : start + CHUNK])
        padded = chunk + [""] * (CHUNK - len(chunk))
        padded_seeds = list(seeds[start : start + CHUNK]) + [0] * (CHUNK - len(chunk))
        negatives = None if negative_prompts is None else _padded(list(negative_prompts[start : start + CHUNK]))
        rows = jax.tree.map(lambda a, at=start: _padded(np.asarray(a)[at : at + CHUNK]), told or Conditioning())
        conditions = _join(encode(trained, padded), rows, negatives and encode(trained, negatives)[0])
        arguments = (trained.params, *conditions, np.asarray(padded_seeds, np.uint32), times)
        latents = draw(*arguments, jnp.float32(settings.guidance_scale)).x
        if not np.all(np.isfinite(latents)):
            explain_nonfinite(trained, settings, conditions, padded_seeds)
        pictures.append(np.asarray(decode(trained.codec_params, latents))[: len(chunk)])
    return np.concatenate(pictures)


def encode(trained: TrainedRun, prompts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
    """The encoded prompts, one row each, and the encoded absence of a prompt, one row.

    Raises:
        ValueError: a prompt is too long for the network.
    """
    ids, mask = text.encode_bytes(list(prompts), trained.text_length)
    return _make_encode(trained.network)(trained.params, ids, mask)


def _padded(rows: Any) -> Any:
    """A chunk brought to its fixed size."""
    if isinstance(rows, list):
        return rows + [""] * (CHUNK - len(rows))
    return np.concatenate([rows, np.zeros((CHUNK - len(rows), *rows.shape[1:]), rows.dtype)])


def _join(
    encoded: tuple[Conditioning, Conditioning], told: Conditioning, negative: Conditioning | None
) -> tuple[Conditioning, Conditioning]:
    """The condition and what stands against it, with what else the network is told; only the palette is left out."""
    cond, null = encoded
    against = null if negative is None else negative
    parts = {name: value for name, value in told._asdict().items() if value is not None}
    if not parts:
        return cond, against
    against = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (CHUNK, *leaf.shape[1:])), against)
    return cond._replace(**parts), conditioning.null(against._replace(**parts), parts=("palette",))


def guidance_of(scale: float) -> bool | None:
    """The kind of program for a scale: None, the condition left out (0); False, it alone (1); True, both."""
    return None if scale == 0 else scale != 1


def make_denoiser(
    network: Any, params: Params, objective: Any, null: Conditioning, guided: bool | None, scale: Any, interval: Any
) -> Denoiser:
    """The network as a guided denoiser of encoded prompts; one that reads the scale is told it, and asked once."""

    def apply(params: Params, x: jax.Array, t: jax.Array, cond: Conditioning) -> jax.Array:
        return network.apply({"params": params}, x, t, cond)

    plain = denoiser.make_denoiser(apply, params, objective.schedule, objective.prediction)
    if _reads_guidance(network):
        return _told(plain, scale)
    scale = scale if guided else 0 if guided is None else 1
    return guidance.classifier_free(plain, scale, guidance.negative(null), interval=interval if guided else None)


def _reads_guidance(network: Any) -> bool:
    return getattr(getattr(network, "dit", network), "has_guidance", False)


def _told(plain: Denoiser, scale: Any) -> Denoiser:
    def denoise(x: jax.Array, t: jax.Array, cond: Conditioning) -> Denoised:
        return plain(x, t, cond._replace(guidance_scale=jnp.broadcast_to(jnp.asarray(scale, t.dtype), t.shape[:1])))

    return denoiser.declare(denoise, lambda t: denoiser.evaluations(plain, t))


@functools.lru_cache(maxsize=32)
def make_draw(
    network: Any,
    objective: Any,
    sampler: sampling.Sampler,
    guided: bool | None,
    interval: tuple[float, float] | None,
    latent_shape: tuple[int, ...],
) -> Any:
    """The jitted path from encoded prompts and seeds to latents: (params, cond, null, seeds, times, scale) -> Sampled.

    Times and scale are data: grids padded to one length share one program.
    """

    def draw(
        params: Params, cond: Conditioning, null: Conditioning, seeds: jax.Array, times: jax.Array, scale: jax.Array
    ) -> Sampled:
        return sampling.sample(
            make_denoiser(network, params, objective, null, guided, scale, interval),
            noise.initial_noise(seeds, latent_shape) * objective.schedule.sigma(times[0]),
            sampler=sampler,
            times=times,
            schedule=objective.schedule,
            cond=cond,
            key=noise.keys_from_seeds(seeds),
        )

    return jax.jit(draw)


@functools.lru_cache(maxsize=8)
def make_decode(codec: Any) -> Any:
    """The jitted path from latents to uint8 pixels: (codec parameters, latents) -> (b, f, h, w, 3)."""
    return jax.jit(lambda params, latents: to_uint8(codec.decode(params, codec.denormalize(latents))))


@functools.lru_cache(maxsize=8)
def _make_encode(network: Any) -> Any:
    def encode(params: Params, ids: jax.Array, mask: jax.Array) -> tuple[Conditioning, Conditioning]:
        cond = Conditioning(text_ids=ids, text_mask=mask)
        nothing = conditioning.null(jax.tree.map(lambda leaf: leaf[:1], cond), parts=("text",))
        return tuple(network.apply({"params": params}, c, method="encode_text") for c in (cond, nothing))  # pyright: ignore[reportReturnType]

    return jax.jit(encode)


def explain_nonfinite(
    trained: TrainedRun,
    settings: SamplingSettings,
    conditions: tuple[Conditioning, Conditioning],
    seeds: Sequence[int],
) -> None:
    """Raises FloatingPointError: where the walk left the finite numbers, or that the guided network is not at fault."""
    cond, null = conditions
    schedule = trained.objective.schedule
    guided = guidance_of(settings.guidance_scale)
    scale, interval = settings.guidance_scale, settings.guidance_interval
    sampling.check_finite(
        make_denoiser(trained.network, trained.params, trained.objective, null, guided, scale, interval),
        noise.initial_noise(np.asarray(seeds, np.uint32), trained.latent_shape) * schedule.sigma(jnp.ones(())),
        sampler=named.get(settings.sampler),
        times=time_grids.named(settings.time_grid, settings.num_steps, schedule),
        schedule=schedule,
        cond=cond,
        key=noise.keys_from_seeds(np.asarray(seeds, np.uint32)),
    )
    raise FloatingPointError(f"{settings.sampler} ended in numbers that are not finite, but not when walked again")


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
        paths.append(folder / f"{slug(prompt) or 'empty'}-seed{seed}.png")
        image.save(paths[-1], pnginfo=info)
    return paths


def slug(prompt: str) -> str:
    """The letters and digits of a prompt as part of a file name, 60 characters at most."""
    return "-".join("".join(c if c.isalnum() else " " for c in prompt.lower()).split())[:60]
