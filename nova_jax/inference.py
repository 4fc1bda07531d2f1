"""A trained run as a function from prompts to pictures and clips.

The run folder holds everything: the resolved config (network, objective, text encoder, latent shape), the checkpoints,
and in `codec/` the autoencoder whose latents were learnt. Only a frozen text encoder stays where it was, in the folder
that the config names.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from nova_jax import config, distillation, drawing, files, sampling, weights
from nova_jax.diffusion import conditioning
from nova_jax.models.text import encoder as text_encoders
from nova_jax.models.text.encoder import TextEncoder
from nova_jax.runs import record
from nova_jax.sampling import named, noise, time_grids
from nova_jax.tasks import checks
from nova_jax.tasks.limits import Range
from nova_jax.training import checkpoint
from nova_jax.types import Conditioning, Params

CHUNK = 16  # pictures per call: a fixed size, so that a picture does not depend on how many are asked for
CHUNK_LATENTS = 4096  # of clips, as many per call as have so many latents (places, not channels), but at least one
ROOM = 32  # steps that a compiled program has room for, at least; fewer cost nothing more
CODEC_FOLDER = "codec"
SEEDS = Range(0, 2**32 - 1)

Given = tuple[Float[np.ndarray, "b f h w c"], Bool[np.ndarray, "b f"]]  # known latents, and which of the frames are


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How pictures are drawn.

    Attributes:
        sampler: A name from `sampling.named.SAMPLERS`.
        num_steps: Of the sampler; how often it evaluates the network in each is its own affair.
        guidance_scale: Of classifier-free guidance; 1 is none, and costs half.
        guidance_interval: (low, high), the times within which to guide; None: all.
        time_grid: A name that `sampling.time_grids.named` knows, or the JSON file of a fitted grid.
        start: Where drawing starts, below 1 from what `sampling.noise.start` knows of data; the grid shrinks to it.
        given_noise: The time at which given frames are shown (`diffusion.given_frames`).
    """

    sampler: str = "heun"
    num_steps: int = 25
    guidance_scale: float = 4.0
    guidance_interval: tuple[float, float] | None = None
    time_grid: str = "uniform"
    start: float = 1.0
    given_noise: float = 0.0

    def __post_init__(self) -> None:
        named.get(self.sampler, self.num_steps)
        if not 0 <= self.guidance_scale < np.inf:
            raise ValueError(f"guidance_scale is {self.guidance_scale}; it must be 0 or more (1 is no guidance)")
        if self.guidance_interval is not None and not 0 <= self.guidance_interval[0] < self.guidance_interval[1] <= 1:
            low, high = self.guidance_interval
            raise ValueError(f"guidance_interval is {low} {high}; it must be two times, 0 <= low < high <= 1")
        if not (0 < self.start <= 1 and 0 <= self.given_noise <= 1):
            raise ValueError(f"start={self.start} must lie in (0, 1] and given_noise={self.given_noise} in [0, 1]")


class TrainedRun(NamedTuple):
    """All that is needed to draw: the network with its parameters, the codec with its own, and the shapes.

    `objective` is what the network was trained with; a distillation method makes it a few-step student. `text_encoder`
    reads the prompts; its parameters are among the network's, unless it is frozen.
    """

    network: Any
    params: Params
    objective: Any
    codec: Any
    codec_params: Params
    latent_shape: tuple[int, int, int, int]  # f h w c
    text_encoder: TextEncoder
    step: int = 0  # training steps behind the parameters


def load_run(
    run_dir: str | pathlib.Path, step: int | None = None, *, text_path: str | pathlib.Path | None = None
) -> TrainedRun:
    """Loads the EMA parameters of a run's newest good checkpoint (or of `step`).

    Args:
        run_dir: the run folder.
        step: of a checkpoint.
        text_path: folder of the run's frozen text encoder where it has moved; None: as the run's config names it.

    Raises:
        FileNotFoundError: the folder is not a run folder, or holds no checkpoint yet.
        ValueError: the run did not train a network that draws from a text, or `text_path` is given to one that trains
            its own text encoder.
    """
    run_dir = pathlib.Path(run_dir)
    saved = record.read(run_dir)
    if "text_length" not in saved["data"]:
        raise ValueError(f"{run_dir} trained {saved['config']['name']!r}, which is no run that draws from a text")
    step, params = checkpoint.read_ema(run_dir / "checkpoints", step=step)
    codec, codec_params = weights.load(run_dir / CODEC_FOLDER)
    network = config.from_dict(saved["config"]["model"])
    if text_path is not None and text_encoders.find(network):
        raise ValueError(f"{run_dir} trains its own text encoder: leave the folder of a frozen one out")
    return TrainedRun(
        network=network,
        params=params,
        objective=config.from_dict(saved["config"]["objective"]),
        codec=codec,
        codec_params=codec_params,
        latent_shape=tuple(saved["data"]["latent_shape"]),
        text_encoder=text_encoders.find(network) or _frozen_encoder(saved, text_path),
        step=step,
    )


def _frozen_encoder(saved: dict[str, Any], path: str | pathlib.Path | None) -> Any:
    """The frozen text encoder that the data of a run names; of a mixture that of its first part."""
    data = saved["config"]["data"]
    while "text_encoder" not in data:
        data = data["parts"][0][0]
    encoder = config.from_dict(data["text_encoder"])
    return encoder if path is None else dataclasses.replace(encoder, path=str(path))


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
    if not drawing.reads_guidance(trained.network) and settings.guidance_scale != 1:
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
    given: Given | None = None,
) -> np.ndarray:
    """Draws one picture, or clip, per (prompt, seed).

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
        given: frames of the latents that are known, one row each; they come out as they are.

    Returns:
        uint8 pixels (b, f, h, w, 3).

    Raises:
        ValueError: no prompts, not one seed for each, a seed out of `SEEDS`, a prompt too long or not Unicode, a time
            grid that there is not, settings that a student has not learnt.
        FloatingPointError: a walk ended in NaN or infinity; at which step.
    """
    decode = make_decode(trained.codec)
    chunks = _draw_chunks(trained, prompts, seeds, settings, told, negative_prompts, given)
    return np.concatenate([np.asarray(decode(trained.codec_params, x))[:count] for x, count in chunks])


def generate_latents(
    trained: TrainedRun,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings | None = None,
    *,
    told: Conditioning | None = None,
    negative_prompts: Sequence[str] | None = None,
    given: Given | None = None,
) -> Float32[np.ndarray, "b f h w c"]:
    """As `generate`, but returns the normalised latents."""
    chunks = _draw_chunks(trained, prompts, seeds, settings, told, negative_prompts, given)
    return np.concatenate([np.asarray(x)[:count] for x, count in chunks])


def rows_per_call(latent_shape: tuple[int, ...]) -> int:
    """The fixed number of pictures, or of clips of this shape (f, h, w, c), that are drawn together."""
    f, h, w, _ = latent_shape
    return CHUNK if f == 1 else min(CHUNK, max(1, CHUNK_LATENTS // (f * h * w)))


def _draw_chunks(
    trained: TrainedRun,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings | None,
    told: Conditioning | None,
    negative_prompts: Sequence[str] | None,
    given: Given | None,
) -> Iterator[tuple[jax.Array, int]]:
    """Latents of `rows_per_call` samples at a time, and how many of them were asked for."""
    if len(prompts) != len(seeds) or not prompts:
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds: give one or more prompts, each with its seed")
    if wrong := [seed for seed in seeds if not SEEDS.low <= seed <= SEEDS.high]:
        raise ValueError(f"seed is {wrong[0]}; it must be a whole number {SEEDS}")
    check_prompts(trained.text_encoder, [*prompts, *(negative_prompts or ())])
    settings = settings_for(trained) if settings is None else settings
    check_settings(trained, settings)
    times = time_grids.pad(_grid(trained, settings), max(settings.num_steps, ROOM))
    draw = drawing.make_draw(
        trained.network,
        trained.objective,
        named.get(settings.sampler),
        drawing.guidance_of(settings.guidance_scale),
        settings.guidance_interval,
        trained.latent_shape,
    )
    size = rows_per_call(trained.latent_shape)
    for start in range(0, len(prompts), size):
        rows = functools.partial(_rows, start=start, size=size)
        negative = None if negative_prompts is None else encode(trained, rows(list(negative_prompts)))[0]
        conditions = _join(encode(trained, rows(list(prompts))), jax.tree.map(rows, told or Conditioning()), negative)
        frames = None if given is None else (*map(rows, given), np.float32(settings.given_noise))
        chosen = np.asarray(rows(np.asarray(seeds, np.uint32)))
        latents = draw(trained.params, *conditions, chosen, times, jnp.float32(settings.guidance_scale), frames).x
        if not np.all(np.isfinite(latents)):
            explain_nonfinite(trained, settings, conditions, chosen.tolist(), frames)
        yield latents, min(size, len(prompts) - start)


def _rows(values: Any, *, start: int, size: int) -> Any:
    """So many rows from `start` on, the missing ones empty."""
    if isinstance(values, list):
        chunk = list(values[start : start + size])
        return chunk + [""] * (size - len(chunk))
    chunk = np.asarray(values)[start : start + size]
    return np.concatenate([chunk, np.zeros((size - len(chunk), *chunk.shape[1:]), chunk.dtype)])


def _grid(trained: TrainedRun, settings: SamplingSettings) -> jax.Array:
    return settings.start * time_grids.named(settings.time_grid, settings.num_steps, trained.objective.schedule)


def check_prompts(encoder: Any, prompts: Sequence[str]) -> None:  # Any: a protocol's check would read T5's folder
    """Refuses prompts that a `TextEncoder` cannot read, all of them before the first one is drawn.

    Raises:
        CaptionTooLong: a prompt is too long for the text encoder.
        ValueError: a prompt holds half a character, or bytes that are not UTF-8.
    """
    if wrong := [prompt for prompt in prompts if not checks.is_unicode(prompt)]:
        raise ValueError(
            f"the prompt {checks.show(wrong[0])} holds half a character, or bytes that are not UTF-8: give Unicode text"
        )
    encoder.tokenize(list(prompts))


def encode(trained: TrainedRun, prompts: Sequence[str]) -> tuple[Conditioning, Conditioning]:
    """The encoded prompts, one row each, and the encoded absence of a prompt, one row.

    Raises:
        CaptionTooLong: a prompt is too long for the text encoder.
    """
    ids, mask = trained.text_encoder.tokenize(list(prompts))
    if not trained.text_encoder.is_frozen:
        return _make_encode(trained.network)(trained.params, ids, mask)
    states, mask = weights.encode_text(trained.text_encoder, ids, mask)
    cond = Conditioning(text=states, text_mask=mask)
    return cond, conditioning.null(jax.tree.map(lambda leaf: leaf[:1], cond), parts=("text",))


def _join(
    encoded: tuple[Conditioning, Conditioning], told: Conditioning, negative: Conditioning | None
) -> tuple[Conditioning, Conditioning]:
    """The condition and what stands against it, with what else the network is told; only the palette is left out."""
    cond, null = encoded
    against = null if negative is None else negative
    parts = {name: value for name, value in told._asdict().items() if value is not None}
    if not parts:
        return cond, against
    rows = len(jax.tree.leaves(parts)[0])
    against = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (rows, *leaf.shape[1:])), against)
    return cond._replace(**parts), conditioning.null(against._replace(**parts), parts=("palette",))


def to_latents(trained: TrainedRun, pixels: UInt8[np.ndarray, "b f h w 3"]) -> Float32[np.ndarray, "b g i j c"]:
    """Normalised latents of pictures or clips, each by itself.

    Raises:
        ValueError: a size that the autoencoder does not compress to whole latents.
    """
    encode = _make_to_latents(trained.codec)
    return np.concatenate([np.asarray(encode(trained.codec_params, clip[None])) for clip in pixels])


@functools.lru_cache(maxsize=8)
def _make_to_latents(codec: Any) -> Any:
    return jax.jit(
        lambda params, pixels: codec.normalize(codec.encode(params, pixels.astype(jnp.float32) / 127.5 - 1.0)[0])
    )


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
    given: Any = None,
) -> None:
    """Raises FloatingPointError: where the walk left the finite numbers, or that the guided network is not at fault."""
    cond, null = conditions
    schedule, times = trained.objective.schedule, _grid(trained, settings)
    guided = drawing.guidance_of(settings.guidance_scale)
    scale, interval = settings.guidance_scale, settings.guidance_interval
    denoise = drawing.make_denoiser(trained.network, trained.params, trained.objective, null, guided, scale, interval)
    eps = noise.initial_noise(np.asarray(seeds, np.uint32), trained.latent_shape)
    sampling.check_finite(
        drawing.holding(denoise, given, schedule, eps),
        noise.start(eps, times[0], schedule),
        sampler=named.get(settings.sampler),
        times=times,
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
    *,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Writes the first frame of each picture as PNG, with prompt, seed and settings in its text chunks.

    What is there already stays, unless `overwrite` says otherwise: see `files`, which makes the names.
    """
    said = {key: str(value) for key, value in dataclasses.asdict(settings).items()}
    return [
        files.save_png(
            pathlib.Path(folder) / f"{files.name(prompt, seed)}.png",
            picture[0],
            {"prompt": prompt, "seed": str(seed), **said},
            upscale=upscale,
            overwrite=overwrite,
        )
        for picture, prompt, seed in zip(pixels, prompts, seeds, strict=True)
    ]
