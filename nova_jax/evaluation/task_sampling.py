"""A trained model's answers to the questions of an exam, and what its autoencoder makes of the true ones.

Images are sampled by `generation.images` and videos by `generation.videos`: the kind of request decides.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nova_jax import generation
from nova_jax.evaluation.exam import Apart, Ask, Clip, Clips, Locate, Question
from nova_jax.tasks import Inpaint, Limits, Outpaint, VideoLimits, VideoRequest
from nova_jax.tasks.request import Request

SAMPLER = (
    f"heun, {generation.images.STEPS['standard']} steps; masks and alphas {generation.images.DENSE.num_steps}, unguided"
)


def limits_of(trained: generation.TrainedRun) -> Limits | VideoLimits:
    """What a model samples: clips of one size and length if it was trained on more than one frame, or else images."""
    return generation.videos.limits_of(trained) if trained.latent_shape[0] > 1 else generation.images.limits_of(trained)


def requests(ask: Ask) -> tuple[Request, ...]:
    """What a question has the model sample; nothing where a mask is sought."""
    if isinstance(ask, Apart):
        return ask.requests
    return () if isinstance(ask, Locate) else (ask,)


def check(trained: generation.TrainedRun, asked: Sequence[Ask]) -> None:
    """Refuses questions that the network has no inputs for, or whose size it cannot sample.

    Raises:
        ValueError: which ones, and what to do.
    """
    wanted = [request for ask in asked for request in requests(ask)]
    for request in wanted:
        if isinstance(request, VideoRequest):
            generation.videos.check(trained, request)
    generation.images.check_network(trained, [request for request in wanted if not isinstance(request, VideoRequest)])


def sample(trained: generation.TrainedRun, asked: Sequence[Ask], guidance: float) -> Clips:
    """The model's answers; an alpha and a mask as gray images.

    Args:
        trained: A run.
        asked: Questions whose answers have one shape.
        guidance: Scale of classifier-free guidance of videos; the other requests bring theirs.
    """
    sought = [ask for ask in asked if isinstance(ask, Locate)]
    found = iter(generation.images.locate(trained, [ask.image for ask in sought], [ask.prompt for ask in sought]))
    samples = iter(sample_all(trained, [request for ask in asked for request in requests(ask)], guidance))
    answers = []
    for ask in asked:
        is_mask = isinstance(ask, Locate)
        answers.append(_gray(255 * next(found)) if is_mask else np.concatenate([next(samples) for _ in requests(ask)]))
    return np.stack(answers)


def sample_all(trained: generation.TrainedRun, wanted: Sequence[Request], guidance: float) -> list[Clip]:
    """The first image of every request for images, or the whole video of every request for videos.

    Args:
        trained: A run.
        wanted: Requests for images alone, or for videos alone.
        guidance: As in `sample`.
    """
    videos = [request for request in wanted if isinstance(request, VideoRequest)]
    if len(videos) < len(wanted):
        return [_opaque(images[:1]) for images in generation.images.draw_all(trained, wanted)]
    return [
        np.concatenate(list(shots)) for shots in generation.videos.draw_all(trained, videos, video_settings(guidance))
    ]


def video_settings(guidance: float) -> generation.SamplingSettings:
    """How videos are sampled: as images are."""
    return generation.SamplingSettings(num_steps=generation.images.STEPS["standard"], guidance_scale=float(guidance))


def rebuild(trained: generation.TrainedRun, questions: Sequence[Question]) -> Clips:
    """The true images after the autoencoder, a film shot by shot; of an edit in a mask, the source outside."""
    return np.stack([_rebuild(trained, q) for q in questions])


def _rebuild(trained: generation.TrainedRun, q: Question) -> Clip:
    shots = np.stack(np.split(q.truth, num_shots(q.ask)))
    latents = generation.to_latents(trained, shots)
    image = np.concatenate([generation.decode(trained, each[None])[0] for each in latents])
    return generation.images.plan(q.ask, trained).finish(image) if isinstance(q.ask, (Inpaint, Outpaint)) else image


def num_shots(ask: Ask) -> int:
    """Of the answer to a question: an image is one."""
    return sum(len(r.storyboard) if isinstance(r, VideoRequest) else 1 for r in requests(ask)) or 1


def _gray(levels: Any) -> Clip:
    return np.repeat(np.asarray(levels, np.uint8)[None, ..., None], 3, axis=-1)


def _opaque(image: UInt8[np.ndarray, "1 h w c"]) -> Clip:
    """The image, or its alpha as gray if it has one."""
    return image if image.shape[-1] == 3 else np.repeat(image[..., 3:], 3, axis=-1)
