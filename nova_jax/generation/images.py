"""Editing requests, carried out by a trained model: the conditions of each task, and what becomes of the image.

    TextToImage          prompt, perhaps a control image           the sampled image
    Inpaint, Outpaint    prompt, masked source, mask               sampled inside the mask, the source outside
    RemoveBackground     source                                    source with the sampled image as its alpha
    Vary                 references at time 1 - similarity         the sampled image
    ColorGuided          prompt, palette, perhaps a reference      the sampled image

A mask prompt is resolved first, by the same network: it samples the mask as an image. Pixels outside a mask are those
of the source, bit for bit; only the soft boundary of an outpainting in DEFAULT mode blends the two.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image

from nova_jax.generation import batches, codec
from nova_jax.generation.settings import SamplingSettings
from nova_jax.runs.load import TrainedRun
from nova_jax.tasks import (
    ColorGuided,
    Inpaint,
    Limits,
    Outpaint,
    RemoveBackground,
    TextToImage,
    Vary,
    color,
    conditions,
)
from nova_jax.tasks.request import Request
from nova_jax.types import Conditioning

STEPS = {"standard": 12, "premium": 24}
DENSE = SamplingSettings(sampler="heun", num_steps=8, guidance_scale=1.0)  # masks and alphas have one answer
SOFT = 1 / 32  # width of a soft boundary, as a share of the shorter side

Picture = UInt8[np.ndarray, "h w 3"]
Pictures = UInt8[np.ndarray, "n h w c"]


class Plan(NamedTuple):
    """Prompt, conditions (without a batch axis) and settings of one request, and what becomes of its images."""

    prompt: str
    size: tuple[int, int]
    cond: Conditioning = Conditioning()
    negative: str | None = None
    number: int = 1
    seed: int = 0
    settings: SamplingSettings = DENSE
    finish: Callable[[Pictures], Pictures] = lambda pictures: pictures


def limits_of(trained: TrainedRun) -> Limits:
    """The sizes that suit a trained model: up to four times the side that it was trained at."""
    _, height, width, _ = trained.latent_shape
    space = trained.codec.compression[1]
    side = min(height, width) * space
    return Limits(min_side=min(side, 32), max_side=4 * side, multiple=space, default_side=side)


def draw(trained: TrainedRun, request: Request, settings: SamplingSettings | None = None) -> Pictures:
    """The images of one request, uint8 (n, h, w, 3); (n, h, w, 4) where a background is removed. See `draw_all`."""
    return draw_all(trained, [request], settings)[0]


def draw_all(
    trained: TrainedRun, requests: Sequence[Request], settings: SamplingSettings | None = None
) -> list[Pictures]:
    """The images of many requests; those with the same kinds of conditions are sampled together.

    Args:
        trained: a run of an editing model.
        requests: of any kinds and sizes.
        settings: sampler, steps and time grid; guidance is the request's own. None: Heun in 12 steps, premium in 24.

    Raises:
        ValueError: the network lacks an input that a request needs, a size is no multiple of the autoencoder's
            compression, or a mask prompt found nothing.
    """
    check_network(trained, requests)
    plans = [plan(request, trained, settings) for request in _with_masks(trained, requests)]
    return _carry_out(trained, plans)


def locate(trained: TrainedRun, pictures: Sequence[Picture], prompts: Sequence[str]) -> list[Bool[np.ndarray, "h w"]]:
    """Where each prompt's objects are in its image: True inside; all False when there are none."""
    drawn = _carry_out(trained, [_plan_mask(trained, *pair) for pair in zip(pictures, prompts, strict=True)])
    return [mask[0].mean(axis=-1) >= 128 for mask in drawn]


def check_network(trained: TrainedRun, requests: Sequence[Request]) -> None:
    """Refuses requests that the network has no inputs for, or cannot draw at their size.

    Raises:
        ValueError: it was trained on text alone, or an image to edit does not divide into latents.
    """
    dit = getattr(trained.network, "dit", trained.network)
    needy = [type(r).__name__ for r in requests if not isinstance(r, TextToImage) or r.condition_image is not None]
    if needy and not dit.num_tasks:
        raise ValueError(
            f"{', '.join(sorted(set(needy)))} needs an editing model, and this run learnt text to image alone: train "
            "one with `python -m experiments.canvas`, or ask for TextToImage without a condition image"
        )
    space = trained.codec.compression[1]
    for request in requests:
        height, width = request.size
        if height % space or width % space:
            raise ValueError(
                f"{type(request).__name__} asks for {width} x {height} pixels, but this model draws whole latents of "
                f"{space} x {space}: crop or pad to sides that {space} divides"
            )


@functools.singledispatch
def plan(request: Request, trained: TrainedRun, settings: SamplingSettings | None = None) -> Plan:
    """The plan of a request.

    Raises:
        TypeError: a kind of request that has no plan.
    """
    raise TypeError(f"{type(request).__name__} is no request that this model carries out")


@plan.register
def _(request: TextToImage, trained: TrainedRun, settings: Any = None) -> Plan:
    prompt = request.text if request.style is None else f"{request.text}, {request.style.replace('_', ' ').lower()}"
    cond = Conditioning()
    if request.condition_image is not None:
        picture = _fit(request.condition_image, request.size)
        control = conditions.canny(picture) if request.control_mode == "CANNY_EDGE" else picture
        rng = np.random.default_rng(request.settings.seed)
        aligned = conditions.aligned(
            _latent_shape(trained, request.size),
            trained.codec.compression[1],
            control=encode(trained, control[None]),
            strength=float(request.control_strength),
            rng=rng,
        )
        cond = _conditions("structure", aligned=aligned)
    return _plan_of(request, prompt, settings)._replace(cond=cond)


@plan.register
def _(request: Inpaint, trained: TrainedRun, settings: Any = None) -> Plan:
    assert request.mask is not None
    cond = _conditions("remove" if request.removes else "fill", aligned=_masked(trained, request.image, request.mask))
    keep = functools.partial(paste, source=request.image, weight=request.mask.astype(np.float32))
    return _plan_of(request, request.text or "", settings)._replace(cond=cond, finish=keep)


@plan.register
def _(request: Outpaint, trained: TrainedRun, settings: Any = None) -> Plan:
    assert request.mask is not None
    cond = _conditions("outpaint", aligned=_masked(trained, request.image, request.mask))
    weight = request.mask.astype(np.float32) if request.mode == "PRECISE" else soften(request.mask)
    keep = functools.partial(paste, source=request.image, weight=weight)
    return _plan_of(request, request.text, settings)._replace(cond=cond, finish=keep)


@plan.register
def _(request: RemoveBackground, trained: TrainedRun, settings: Any = None) -> Plan:
    del settings  # an alpha has one answer
    cond = _conditions("matte", aligned=_masked(trained, request.image, None))
    return Plan("", request.size, cond, finish=functools.partial(cut_out, source=request.image))


@plan.register
def _(request: Vary, trained: TrainedRun, settings: Any = None) -> Plan:
    latents = encode(trained, np.stack([_fit(picture, request.size) for picture in request.images]))
    rng = np.random.default_rng(request.settings.seed)
    frames, times = conditions.references(
        latents, conditions.MAX_REFERENCES, similarity=float(request.similarity_strength), rng=rng
    )
    cond = _conditions("vary", frames=frames, frame_times=times)
    return _plan_of(request, request.text or "", settings)._replace(cond=cond)


@plan.register
def _(request: ColorGuided, trained: TrainedRun, settings: Any = None) -> Plan:
    palette, palette_mask = conditions.palette(color.to_lab(request.rgb))
    shown = [] if request.reference_image is None else [_fit(request.reference_image, request.size)]
    latents = encode(trained, np.stack(shown)) if shown else np.zeros((0, *_latent_shape(trained, request.size)[1:]))
    frames, times = conditions.references(latents, 1)
    cond = _conditions("colors", palette=palette, palette_mask=palette_mask, frames=frames, frame_times=times)
    return _plan_of(request, request.text, settings)._replace(cond=cond)


def encode(trained: TrainedRun, pictures: UInt8[np.ndarray, "n h w 3"]) -> Float32[np.ndarray, "n i j c"]:
    """Normalised latents of images.

    Raises:
        ValueError: a side is no multiple of the autoencoder's compression.
    """
    return codec.to_latents(trained, pictures[:, None])[:, 0]


def paste(pictures: Pictures, *, source: Picture, weight: Float[np.ndarray, "h w"]) -> Pictures:
    """The drawn images by `weight`, the source by the rest of it; where it is 0, the source bit for bit."""
    share = weight[..., None]
    return np.rint(share * pictures + (1 - share) * source).astype(np.uint8)


def soften(mask: Bool[np.ndarray, "h w"]) -> Float32[np.ndarray, "h w"]:
    """Weights that rise to 1 from the boundary of the mask inwards, over `SOFT` of the shorter side; 0 outside it."""
    width = max(1, round(SOFT * min(mask.shape)))
    weight, inside = np.zeros(mask.shape, np.float32), mask
    for _ in range(width):
        weight += inside / (width + 1)
        inside = inside & _all_neighbours(inside)
    return np.where(inside, np.float32(1), weight)


def cut_out(pictures: Pictures, *, source: Picture) -> UInt8[np.ndarray, "n h w 4"]:
    """The source with the brightness of each drawn image as alpha: uint8 (n, h, w, 4)."""
    alpha = np.rint(pictures.mean(axis=-1, keepdims=True)).astype(np.uint8)
    return np.concatenate([np.broadcast_to(source, pictures.shape), alpha], axis=-1)


def on_checkerboard(picture: UInt8[np.ndarray, "h w 4"], square: int = 4) -> Picture:
    """An image with alpha over light and dark gray squares of so many pixels, to show what is transparent."""
    row, column = np.indices(picture.shape[:2]) // square
    board = np.repeat(np.where((row + column) % 2, 153, 204)[..., None], 3, axis=-1)
    alpha = picture[..., 3:] / 255
    return np.rint(alpha * picture[..., :3] + (1 - alpha) * board).astype(np.uint8)


def _all_neighbours(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Whether the pixels above, below, left and right are True as well; beyond the image they are."""
    padded = np.pad(mask, 1, constant_values=True)
    return padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _with_masks(trained: TrainedRun, requests: Sequence[Request]) -> list[Request]:
    """The requests with their mask prompts resolved.

    Raises:
        ValueError: a prompt found nothing.
    """
    found = list(requests)
    prompted = [i for i, r in enumerate(requests) if isinstance(r, (Inpaint, Outpaint)) and r.mask_prompt is not None]
    masks = locate(trained, [requests[i].image for i in prompted], [requests[i].mask_prompt for i in prompted])  # pyright: ignore[reportAttributeAccessIssue]
    for i, mask in zip(prompted, masks, strict=True):
        request: Any = requests[i]
        if not mask.any():
            raise ValueError(f"mask_prompt {request.mask_prompt!r} found nothing in the image: name it otherwise")
        image = np.where(mask, 0, 255).astype(np.uint8)  # black: changed by Inpaint, kept by Outpaint
        found[i] = dataclasses.replace(request, mask_prompt=None, mask_image=image)
    return found


def _carry_out(trained: TrainedRun, plans: Sequence[Plan]) -> list[Pictures]:
    """Samples plans in groups that one program serves, and finishes each."""
    groups: dict[Any, list[int]] = {}
    for i, p in enumerate(plans):
        groups.setdefault((p.size, jax.tree.structure(p.cond), p.settings, p.negative is None), []).append(i)
    results: dict[int, Pictures] = {}
    for members in groups.values():
        rows = [(i, number) for i in members for number in range(plans[i].number)]
        drawn = _draw_group(trained, [plans[i] for i, _ in rows], [plans[i].seed + number for i, number in rows])
        for i in members:
            mine = [picture for (owner, _), picture in zip(rows, drawn, strict=True) if owner == i]
            results[i] = plans[i].finish(np.stack(mine))
    return [results[i] for i in range(len(plans))]


def _draw_group(trained: TrainedRun, plans: Sequence[Plan], seeds: Sequence[int]) -> Pictures:
    first = plans[0]
    cond = jax.tree.map(lambda *rows: np.stack(rows), *[p.cond for p in plans])
    sized = trained._replace(latent_shape=_latent_shape(trained, first.size))
    negatives = None if first.negative is None else [p.negative or "" for p in plans]
    pixels = batches.generate(
        sized, [p.prompt for p in plans], seeds, first.settings, conditions=cond, negative_prompts=negatives
    )
    return pixels[:, 0]


def _plan_of(request: Any, prompt: str, settings: SamplingSettings | None) -> Plan:
    """The plan of a request that draws from a prompt, with its own guidance, seed and number of images."""
    own = request.settings
    steps = settings or SamplingSettings(sampler="heun", num_steps=STEPS[own.quality])
    return Plan(
        prompt,
        request.size,
        negative=request.negative_text,
        number=own.count,
        seed=own.seed,
        settings=dataclasses.replace(steps, guidance_scale=float(own.cfg_scale)),
    )


def _plan_mask(trained: TrainedRun, picture: Picture, prompt: str) -> Plan:
    return Plan(prompt, picture.shape[:2], _conditions("segment", aligned=_masked(trained, picture, None)))


def _masked(
    trained: TrainedRun, picture: Picture, mask: Bool[np.ndarray, "h w"] | None
) -> Float32[np.ndarray, "f i j a"]:
    """Aligned channels of a source and what of it is sampled."""
    shown = picture if mask is None else conditions.hide(picture, mask)
    source = encode(trained, shown[None])
    return conditions.aligned(
        _latent_shape(trained, picture.shape[:2]), trained.codec.compression[1], source=source, mask=mask
    )


def _conditions(task: str, **parts: Any) -> Conditioning:
    return Conditioning(task=np.asarray(conditions.TASKS.index(task), np.int32), **parts)  # pyright: ignore[reportArgumentType]


def _latent_shape(trained: TrainedRun, size: tuple[int, int]) -> tuple[int, int, int, int]:
    return trained.codec.latent_shape(1, *size)


def _fit(picture: Picture, size: tuple[int, int]) -> Picture:
    """The image at another size (height, width), resampled if it differs."""
    if picture.shape[:2] == size:
        return picture
    return np.asarray(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.LANCZOS))
