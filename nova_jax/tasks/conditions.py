"""The conditions of an editing model as arrays: the same functions make training batches and requests.

What lies pixel on pixel with the target is aligned, joined on channels in this order (`nova_jax.conditions`):

    source      c        latents of the image to edit, what the mask covers filled with mid grey
    mask        s * s    1 where the image is sampled, at the precision of pixels: s x s of them per latent
    control     c        latents of an edge or segmentation image at time 1 - strength:  k z + (1 - k) eps
    strength    1        k

An absent part is all zeros. What does not lie pixel on pixel: reference images are extra frames at time 1 - similarity,
with that much noise, so the time that the network reads is true; colours are tokens in CIE Lab; the task is a token.

Black Forest Labs 2024, FLUX.1 Fill and Canny (mask by pixel, joined on channels); Le et al. 2024, OneDiffusion, arXiv
2411.16318 (each image of a context at its own noise level); Huang et al. 2023, Composer, 2302.09778.
"""

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

TASKS = ("generate", "fill", "remove", "outpaint", "segment", "matte", "vary", "structure", "colors")

MAX_REFERENCES = 5
MAX_COLORS = 10
GRAY = 128  # of what a mask covers
REFERENCE = 0  # role of an extra frame


def num_channels(latent_channels: int, compression: int) -> int:
    """Aligned channels of an editing model: source, mask, control, strength."""
    return 2 * latent_channels + compression**2 + 1


def hide(
    image: UInt8[np.ndarray, "*frames h w 3"], mask: Bool[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "*frames h w 3"]:
    """The image with mid grey where the mask is True."""
    return np.where(mask[..., None], np.uint8(GRAY), image)


def canny(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The contours of an image, white on black (Canny 1986, smoothed by one pixel).

    Raises:
        ImportError: scikit-image is not installed.
    """
    try:
        from skimage import feature
    except ImportError as error:
        raise ImportError("edges by Canny's detector need scikit-image: pip install 'nova-jax[canvas]'") from error
    luminance = image @ np.array([0.299, 0.587, 0.114]) / 255  # BT.601
    edges = feature.canny(luminance, sigma=1.0, mode="nearest")
    return np.repeat(np.uint8(255) * edges[..., None], 3, axis=-1)


def fold_mask(mask: Bool[np.ndarray, "h w"], compression: int) -> Float32[np.ndarray, "H W k"]:
    """One row per latent, of the `compression` ** 2 pixels that it stands for.

    Raises:
        ValueError: the mask's sides are not multiples of the compression.
    """
    h, w = mask.shape
    s = compression
    if h % s or w % s:
        raise ValueError(f"a mask of {h} x {w} pixels does not divide into latents of {s} x {s}: pad it to multiples")
    folded = mask.reshape(h // s, s, w // s, s).transpose(0, 2, 1, 3)
    return folded.reshape(h // s, w // s, s * s).astype(np.float32)


def aligned(
    shape: tuple[int, int, int, int],
    compression: int,
    *,
    source: Float[np.ndarray, "f H W c"] | None = None,
    mask: Bool[np.ndarray, "h w"] | None = None,
    control: Float[np.ndarray, "f H W c"] | None = None,
    strength: float = 1.0,
    rng: np.random.Generator | None = None,
) -> Float32[np.ndarray, "f H W a"]:
    """The aligned channels of one sample; what is None is zero.

    Args:
        shape: of the target's latents, (f, H, W, c).
        compression: pixels per latent along a side.
        source: normalised latents of the image to edit, see `hide`.
        mask: True where the image is sampled.
        control: normalised latents of the control image.
        strength: k, 0 .. 1; at 0 the control image is left out.
        rng: draws the noise on the control image; needed below strength 1.
    """
    f, h, w, _ = shape
    nothing = np.zeros(shape, np.float32)
    folded = np.zeros((h, w, compression**2), np.float32) if mask is None else fold_mask(mask, compression)
    level = 0.0 if control is None else strength
    parts = (
        nothing if source is None else source,
        np.broadcast_to(folded, (f, *folded.shape)),
        nothing if control is None or not strength else noised(control, 1 - strength, rng),
        np.full((f, h, w, 1), level, np.float32),
    )
    return np.concatenate(parts, axis=-1).astype(np.float32)


def references(
    latents: Float[np.ndarray, "n H W c"],
    slots: int,
    *,
    similarity: float = 1.0,
    rng: np.random.Generator | None = None,
) -> tuple[Float32[np.ndarray, "g H W c"], Float32[np.ndarray, " g"]]:
    """Extra frames of one sample and their times; slots without an image hold zeros at time 1.

    Args:
        latents: normalised latents of n images.
        slots: g, at least n.
        similarity: 1 shows the images without noise; time is 1 - similarity.
        rng: draws their noise; needed below similarity 1.

    Raises:
        ValueError: more images than slots.
    """
    count = len(latents)
    if count > slots:
        raise ValueError(f"{count} reference images, but there is room for {slots}")
    frames = np.zeros((slots, *latents.shape[1:]), np.float32)
    times = np.ones(slots, np.float32)
    if count:
        frames[:count] = noised(latents, 1 - similarity, rng)
        times[:count] = 1 - similarity
    return frames, times


def palette(
    lab: Float[np.ndarray, "n 3"], slots: int = MAX_COLORS
) -> tuple[Float32[np.ndarray, "p 3"], Bool[np.ndarray, " p"]]:
    """Colour tokens of one sample, CIE Lab over 100, and which of them are real.

    Raises:
        ValueError: more colours than slots.
    """
    count = len(lab)
    if count > slots:
        raise ValueError(f"{count} colours, but there is room for {slots}")
    tokens = np.zeros((slots, 3), np.float32)
    tokens[:count] = lab / 100
    return tokens, np.arange(slots) < count


def noised(
    latents: Float[np.ndarray, "*dims c"], t: float, rng: np.random.Generator | None
) -> Float32[np.ndarray, "*dims c"]:
    """(1 - t) latents + t eps.

    Raises:
        ValueError: t > 0 needs noise, and there is no `rng`.
    """
    if t == 0:
        return latents.astype(np.float32)
    if rng is None:
        raise ValueError(f"an image at time {t:g} is noisy: pass rng")
    return ((1 - t) * latents + t * rng.standard_normal(latents.shape)).astype(np.float32)
