"""Encoded still images to 8 bits per channel, upright, in sRGB: the one way in for training data and for requests.

    opened    bytes or path -> the header; not a pixel is decoded
    upright   turned as EXIF says; 8 bits per channel, of which 16-bit files keep the high byte
    to_srgb   RGB or RGBA in sRGB, whatever colour space an embedded ICC profile says

Colours are converted by relative colorimetric intent with black point compensation, as browsers do. A profile that
moves no colour by more than one level is sRGB itself, and pixels stay as they are. A profile that is broken, too large
or of another kind of image (GRAY in an RGB file) is left out, and said once: such a file is read as sRGB, as one
without a profile is. Other claims of colour (gAMA, cHRM and cICP of PNG, the colour space in EXIF) are not read.
"""

import functools
import io
import logging
import pathlib
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageCms
import PIL.ImageOps

from nova_jax import git_lfs

ORIENTATION = 0x0112  # the EXIF tag
GRAY_MODES = ("1", "L", "LA", "La")
PROFILE_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # colour space of a profile -> mode that it reads
MAX_PROFILE_BYTES = 4 * 2**20  # those of printing presses have 0.5 to 3 MB
FLAGS = PIL.ImageCms.Flags.BLACKPOINTCOMPENSATION | PIL.ImageCms.Flags.NOCACHE  # without a cache threads may share it
GRID = 9  # levels of each channel that tell whether a profile is sRGB

logger = logging.getLogger(__name__)


class UnreadableImage(ValueError):
    """An image in a mode whose range of values is not known, or what stands in for an image."""


def opened(source: bytes | str | pathlib.Path, formats: tuple[str, ...]) -> PIL.Image.Image:
    """An image of one of Pillow's formats, with its header read.

    Raises:
        UnreadableImage: it is a pointer of git-lfs.
        PIL.UnidentifiedImageError: it is in another format. Codecs raise whatever else, of what strangers have made.
    """
    is_pointer = git_lfs.is_pointer(source) if isinstance(source, bytes) else git_lfs.is_pointer_file(source)
    if is_pointer:
        raise UnreadableImage(git_lfs.POINTER)
    image = PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats)
    key = image.info.get("transparency")
    if image.format == "PNG" and key is not None:  # Pillow scales pixels to 8 bits, but not the key
        raw_mode = image.tile[0].args
        if isinstance(key, int) and raw_mode in ("L;2", "L;4"):
            image.info["transparency"] = key * {"L;2": 85, "L;4": 17}[raw_mode]
        if isinstance(key, tuple) and raw_mode == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def is_animated(image: PIL.Image.Image) -> bool:
    """Whether a file shows several images in time. Those of an MPO, as phones write it, are one and its previews."""
    return getattr(image, "n_frames", 1) > 1 and image.format != "MPO"


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image as EXIF says it is to be seen, in mode L, LA, RGB, RGBA or CMYK, with its profile.

    Raises:
        UnreadableImage: its mode is none that can be brought to 8 bits.
    """
    image.load()
    turned = PIL.ImageOps.exif_transpose(image) if image.getexif().get(ORIENTATION, 1) != 1 else image
    has_alpha, is_gray = turned.has_transparency_data, turned.mode in GRAY_MODES
    if turned.mode.startswith("I"):
        return _high_bytes(turned)
    if turned.mode == "F":
        raise UnreadableImage("floating point pixels, whose range is not known")
    if turned.mode == "CMYK":
        return turned
    mode = ("LA" if is_gray else "RGBA") if has_alpha else ("L" if is_gray else "RGB")
    return turned if turned.mode == mode else turned.convert(mode)


def _high_bytes(image: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit gray as 8-bit gray; clear where it has the colour that a PNG names as transparent."""
    levels = np.asarray(image).clip(0, 65535)
    gray = PIL.Image.fromarray((levels >> 8).astype(np.uint8))
    if (key := image.info.get("transparency")) is not None:
        gray.putalpha(PIL.Image.fromarray(np.where(levels == key, 0, 255).astype(np.uint8)))
    gray.info = {name: value for name, value in image.info.items() if name != "transparency"}
    return gray


def to_srgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """An upright image in RGB, or in RGBA where it has alpha."""
    alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
    colors: Any = image.convert(image.mode[:-1]) if alpha is not None else image
    profile = image.info.get("icc_profile")
    transform = _transform_from(profile, colors.mode) if profile else None
    if transform is not None:
        mode = transform.input_mode
        colors = PIL.ImageCms.applyTransform(colors if colors.mode == mode else colors.convert(mode), transform)
    srgb = colors if colors.mode == "RGB" else colors.convert("RGB")
    if alpha is not None:
        srgb.putalpha(alpha)
    return srgb


@functools.lru_cache(maxsize=16)
def _transform_from(profile: bytes, mode: str) -> PIL.ImageCms.ImageCmsTransform | None:
    """From the colours of a profile to sRGB, for images of a mode; None where they stay as they are."""
    if len(profile) > MAX_PROFILE_BYTES:
        return _left_out(f"it has {len(profile):,} bytes, more than {MAX_PROFILE_BYTES:,}")
    try:
        source = PIL.ImageCms.ImageCmsProfile(io.BytesIO(profile))
        read: Any = source.profile
        reads = PROFILE_MODES.get(read.xcolor_space, "no mode")
        if reads != mode and (reads, mode) != ("RGB", "L"):
            return _left_out(f"it is of {read.xcolor_space.strip()} and the image in mode {mode}")
        intent = PIL.ImageCms.Intent.RELATIVE_COLORIMETRIC
        srgb = PIL.ImageCms.createProfile("sRGB")
        # A precomputed table of one channel is up to ten levels off in the dark; those of three are exact to one.
        flags = FLAGS | PIL.ImageCms.Flags.NOOPTIMIZE if reads == "L" else FLAGS
        transform = PIL.ImageCms.buildTransform(source, srgb, reads, "RGB", intent, flags)
    except (PIL.ImageCms.PyCMSError, OSError, ValueError) as error:
        return _left_out(str(error))
    return None if _is_identity(transform, reads) else transform


def _left_out(reason: str) -> None:
    logger.warning("a color profile is left out, and its images are read as sRGB: %s", reason)


def _is_identity(transform: PIL.ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether no colour moves by more than one level."""
    if mode == "CMYK":
        return False
    levels = np.rint(np.linspace(0, 255, GRID)).astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(GRID, -1, 3)
    before = np.arange(256, dtype=np.uint8)[None] if mode == "L" else grid
    after = PIL.ImageCms.applyTransform(PIL.Image.fromarray(before), transform)
    moved = np.asarray(after).astype(int) - (before[..., None] if mode == "L" else before)
    return int(np.abs(moved).max()) <= 1
