"""Video requests carried out by a trained model, shot by shot.

    TextToVideo            one shot; an image is its first frame, a known clean latent
    MultiShot              shots drawn one after the other; from the second on, each reads one frame of up to three
                           shots before it as clean extra frames, so that the cast stays
    interpolate, extend    a clip between two images, and after another clip: known frames as well

`draw_all` returns whole clips. `draw_stream` decodes a few frames at a time: latents are small, and images at full
size are never all in memory. Given latents come out as they went in; pixels are what the autoencoder makes of them.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from nova_jax.diffusion import FlowMatching
from nova_jax.generation import batches, codec
from nova_jax.generation.settings import SamplingSettings
from nova_jax.runs.load import TrainedRun
from nova_jax.tasks import VideoLimits, VideoRequest, conditions
from nova_jax.types import Conditioning

REFERENCES = 3  # extra frames of a shot that follows others

Picture = UInt8[np.ndarray, "h w 3"]
Clip = UInt8[np.ndarray, "f h w 3"]
Clips = UInt8[np.ndarray, "n f h w 3"]


class Shot(NamedTuple):
    """Text, seed, known frames and references of one clip."""

    text: str
    seed: int
    known: Float32[np.ndarray, "f i j c"] | None = None  # latents, and which of their frames are given
    is_given: Bool[np.ndarray, " f"] | None = None
    shown: tuple[Picture, ...] = ()  # of earlier shots, at most REFERENCES


def limits_of(trained: TrainedRun) -> VideoLimits:
    """The size and the length of a shot that a model was trained at."""
    latent_frames, height, width, _ = trained.latent_shape
    time, space, _ = trained.codec.compression
    return VideoLimits(height=height * space, width=width * space, frames=1 + time * (latent_frames - 1))


def draw(trained: TrainedRun, request: VideoRequest, settings: SamplingSettings | None = None) -> Clips:
    """The shots of one request, uint8 (n, f, h, w, 3). See `draw_all`."""
    return draw_all(trained, [request], settings)[0]


def draw_all(
    trained: TrainedRun,
    requests: Sequence[VideoRequest],
    settings: SamplingSettings | None = None,
    *,
    references: int = REFERENCES,
) -> list[Clips]:
    """The shots of many requests; those with the same kinds of conditions are sampled together.

    Args:
        trained: a run of a video model.
        requests: of any kinds, sizes and lengths. Shot k of a request has its seed + k.
        settings: how; None: `settings_for` the run.
        references: earlier shots that a shot is shown at most; 0 draws every shot by itself.

    Raises:
        ValueError: the model has not learnt what a request needs, or has no latents of its size and length.
    """
    for request in requests:
        check(trained, request, references)
    boards = [request.storyboard for request in requests]
    clips: list[list[Clip]] = [[] for _ in requests]
    for number in range(max(map(len, boards), default=0)):
        groups: dict[Any, list[int]] = {}
        for i in (i for i, board in enumerate(boards) if number < len(board)):
            has_references = number > 0 and references > 0
            key = (_latent_shape(trained, requests[i]), boards[i][number].image is None, has_references)
            groups.setdefault(key, []).append(i)
        for (shape, *_), members in groups.items():
            shots = [_plan(trained, requests[i], number, _middles(clips[i], references)) for i in members]
            for i, pixels in zip(members, _drawn(batches.generate, trained, shape, shots, settings), strict=True):
                clips[i].append(pixels)
    return [np.stack(c)[:, : r.limits.frames_kept] for r, c in zip(requests, clips, strict=True)]


def draw_stream(
    trained: TrainedRun,
    request: VideoRequest,
    settings: SamplingSettings | None = None,
    *,
    references: int = REFERENCES,
) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
    """Yields the frames of a request in order, a few at a time, its shots one after the other. See `draw_all`."""
    check(trained, request, references)
    shape, shown = _latent_shape(trained, request), []
    for number in range(len(request.storyboard)):
        latents = _drawn(
            batches.generate_latents, trained, shape, [_plan(trained, request, number, tuple(shown))], settings
        )
        first, middle = 0, request.limits.frames // 2
        for pixels in codec.decode_stream(trained, latents[0]):
            if first <= middle < first + len(pixels):
                shown = [*shown, pixels[middle - first]][max(0, len(shown) + 1 - references) :]
            yield pixels[: max(0, request.limits.frames_kept - first)]
            first += len(pixels)


def interpolate(
    trained: TrainedRun,
    text: str,
    first: Picture,
    last: Picture,
    *,
    seed: int = 0,
    settings: SamplingSettings | None = None,
) -> Clip:
    """A clip from one image to another, of the length that the model was trained at.

    A latent stands for several frames, so the clip ends in so many of them that look like the last image.
    """
    _check_given(trained)
    shape = trained.latent_shape
    still = np.repeat(last[None], limits_of(trained).frames, axis=0)
    known = np.zeros(shape, np.float32)
    known[0] = codec.to_latents(trained, first[None, None])[0, 0]
    known[-1] = codec.to_latents(trained, still[None])[0, -1]
    shot = Shot(text, seed, known, np.isin(np.arange(shape[0]), (0, shape[0] - 1)))
    return _drawn(batches.generate, trained, shape, [shot], settings)[0]


def extend(
    trained: TrainedRun,
    text: str,
    clip: Clip,
    *,
    seed: int = 0,
    settings: SamplingSettings | None = None,
    kept: int | None = None,
) -> UInt8[np.ndarray, "g h w 3"]:
    """The clip and what comes after it, as long as the model draws beyond the frames that it is shown.

    Args:
        trained: a run of a video model.
        text: what the whole shows.
        clip: one frame or more, of the model's size.
        seed: of the noise.
        settings: how; None: `settings_for` the run.
        kept: latent frames of the end of the clip that are shown; None: as many as there are, up to half.

    Raises:
        ValueError: nothing would be shown, or nothing drawn.
    """
    _check_given(trained)
    time, shape = trained.codec.compression[0], trained.latent_shape
    there = 1 + (len(clip) - 1) // time
    count = min(there, max(1, shape[0] // 2)) if kept is None else kept
    if not 1 <= count <= min(there, shape[0] - 1):
        raise ValueError(
            f"kept={count} latent frames, but the clip has {there} and a drawn one {shape[0]}, some of them new"
        )
    seen = 1 + time * (count - 1)
    known = np.zeros(shape, np.float32)
    known[:count] = codec.to_latents(trained, clip[None, -seen:])[0]
    shot = Shot(text, seed, known, np.arange(shape[0]) < count)
    return np.concatenate([clip, _drawn(batches.generate, trained, shape, [shot], settings)[0][seen:]])


def check(trained: TrainedRun, request: VideoRequest, references: int = REFERENCES) -> None:
    """Refuses what a model cannot draw.

    Raises:
        ValueError: it has no latents of this size and length, was never given frames, or reads no references.
    """
    _latent_shape(trained, request)
    if any(shot.image is not None for shot in request.storyboard):
        _check_given(trained)
    if not 0 <= references <= REFERENCES:
        raise ValueError(f"references={references}; a shot is shown 0 to {REFERENCES} earlier ones")
    dit = getattr(trained.network, "dit", trained.network)
    if len(request.storyboard) > 1 and references and not dit.num_frame_roles:
        raise ValueError(
            "this network reads no images of earlier shots: train one with num_frame_roles=1 on films, or draw every "
            "shot by itself with references=0"
        )


def _check_given(trained: TrainedRun) -> None:
    objective = trained.objective
    if isinstance(objective, FlowMatching) and objective.given is None and not objective.has_frame_times:
        raise ValueError(
            "this run has never been given frames, so it starts from no image: train with "
            "FlowMatching(given=GivenFrames())"
        )


def _plan(trained: TrainedRun, request: VideoRequest, number: int, shown: tuple[Picture, ...]) -> Shot:
    """One shot of a request."""
    text, image = request.storyboard[number]
    shot = Shot(text or "", request.seed + number, shown=shown)
    if image is None:
        return shot
    shape = _latent_shape(trained, request)
    known = np.zeros(shape, np.float32)
    known[0] = codec.to_latents(trained, image[None, None])[0, 0]
    return shot._replace(known=known, is_given=np.arange(shape[0]) == 0)


def _middles(clips: Sequence[Clip], references: int) -> tuple[Picture, ...]:
    """The middle frames of the last shots."""
    return tuple(clip[len(clip) // 2] for clip in clips[max(0, len(clips) - references) :])


def _drawn(
    draw: Callable[..., np.ndarray],
    trained: TrainedRun,
    shape: tuple[int, ...],
    shots: Sequence[Shot],
    settings: SamplingSettings | None,
) -> np.ndarray:
    """What `batches.generate` or `generate_latents` makes of shots that all have, or lack, the same parts."""
    cond, given = None, None
    if shots[0].shown:
        rows = [_references(trained, shot.shown) for shot in shots]
        frames, times = (np.stack(part) for part in zip(*rows, strict=True))
        cond = Conditioning(frames=frames, frame_times=times)  # pyright: ignore[reportArgumentType]
    if shots[0].known is not None:
        given = np.stack([shot.known for shot in shots]), np.stack([shot.is_given for shot in shots])  # pyright: ignore
    sized = trained._replace(latent_shape=shape)
    return draw(
        sized, [shot.text for shot in shots], [shot.seed for shot in shots], settings, conditions=cond, given=given
    )


def _references(trained: TrainedRun, shown: tuple[Picture, ...]) -> tuple[np.ndarray, np.ndarray]:
    latents = codec.to_latents(trained, np.stack(shown)[:, None])[:, 0]
    return conditions.references(latents, REFERENCES)


def _latent_shape(trained: TrainedRun, request: VideoRequest) -> tuple[int, int, int, int]:
    return trained.codec.latent_shape(request.limits.frames, *request.size)
