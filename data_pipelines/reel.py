"""Video as training batches: clips, pictures and shots of films in one mixture of nearly equal cost.

    part       latents   beside them                                                 rows of a batch
    videos     f         nothing                                                     the batch size
    images     1         nothing                                                     f times as many
    films      f         references, single frames of earlier shots, at time 0       what is asked for

A clip goes through the causal autoencoder once and is kept as half-precision latents (`canvas.CanvasLatents`). Which of
its frames are given is drawn by the objective (`nova_jax.diffusion.given_frames`), so one part serves text to video,
image to video, interpolation and continuation.
"""

from typing import Any

from data_pipelines import conditioned, mixture

MAX_REFERENCES = 3  # pictures of earlier shots, `nova_jax.reel.REFERENCES`


def make_parts(
    *,
    videos: Any,
    images: Any = None,
    films: Any = None,
    weights: tuple[int, int, int] = (4, 2, 2),
    image_rows: float = 7.0,
    film_rows: float = 1.0,
    **settings: Any,
) -> mixture.Mixture:
    """The mixture of three sources; videos describe it.

    Args:
        videos: a source of task "video": `pixels` (1 + k t, h, w, 3) and `caption`, such as
            `scenes.Reels`.
        images: likewise with one frame; None: left out.
        films: likewise with `references` and `num_references`; None: left out.
        weights: how many of their sum of batches come from videos, images and films.
        image_rows: rows of a batch of images over the batch size; the cost is that of clips at their latent frames.
        film_rows: rows of a batch of films over the batch size; references make a row longer.
        settings: of `canvas.CanvasLatents`: `codec_path`, `text_encoder`, `cache_path`, `seed`, `threads`, `stored_as`.
    """
    settings = {"stored_as": "float16"} | settings
    parts: list[Any] = [(conditioned.CanvasLatents(sources=(videos,), **settings), weights[0])]
    if images is not None:
        parts.append((conditioned.CanvasLatents(sources=(images,), **settings), weights[1], image_rows))
    if films is not None:
        shots = conditioned.CanvasLatents(sources=(films,), num_frames=MAX_REFERENCES, **settings)
        parts.append((shots, weights[2], film_rows))
    return mixture.Mixture(parts=tuple(parts))
