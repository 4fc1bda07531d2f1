"""Images and masks from files: PNG or JPEG, 8-bit RGB, opaque, of an allowed size.

The header is checked before a single pixel is decoded, so a small file that claims a huge image costs nothing.
Images are read as training data are, by `nova_jax.media.image_files`: upright, and in sRGB. The levels of a mask are
no colours: a profile does not change them.
"""

import contextlib
import io
import pathlib
from collections.abc import Callable
from contextlib import AbstractContextManager

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from nova_jax.media import image_files
from nova_jax.tasks import checks
from nova_jax.tasks.limits import CANVAS, AnyLimits
from nova_jax.tasks.problems import InvalidRequest, Problem, refuse

RGBImage = UInt8[np.ndarray, "_ _ 3"]  # 0 .. 255
Mask = UInt8[np.ndarray, "_ _"]  # 0 black, 255 white
Source = str | pathlib.Path | bytes | PIL.Image.Image
ToRGB = Callable[[PIL.Image.Image], PIL.Image.Image]

FORMATS = ("PNG", "JPEG")
COLOR_MODES = ("RGB", "RGBA")
GREY_MODES = ("1", "L", "LA")


def read_image(source: Source, limits: AnyLimits = CANVAS) -> RGBImage:
    """Reads an image from a path, the bytes of a file, or a PIL image.

    Returns:
        uint8 (h, w, 3), 0 to 255.

    Raises:
        InvalidRequest: neither PNG nor JPEG, damaged, animated, not 8-bit RGB, transparent anywhere, or outside the
            limits (which ask nothing of divisibility here).
        FileNotFoundError: there is no such file.
    """
    return _read(source, "image", COLOR_MODES, limits, image_files.to_srgb)


def read_mask(source: Source, limits: AnyLimits = CANVAS) -> Mask:
    """Reads a mask likewise, in colour or grey, whose every pixel is pure black or pure white.

    Returns:
        uint8 (h, w), 0 or 255.

    Raises:
        InvalidRequest: as `read_image`, or a pixel is neither black nor white (as JPEG leaves them along edges).
        FileNotFoundError: there is no such file.
    """
    pixels = _read(source, "mask", COLOR_MODES + GREY_MODES, limits, lambda image: image)
    refuse(checks.purity(_name(source, "mask"), pixels))
    return pixels[..., 0]


def to_png(pixels: RGBImage | Mask) -> bytes:
    """The bytes of an RGB PNG file."""
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).convert("RGB").save(stream, "PNG")
    return stream.getvalue()


def _read(source: Source, kind: str, modes: tuple[str, ...], limits: AnyLimits, to_rgb: ToRGB) -> RGBImage:
    name = _name(source, kind)
    try:
        with _open(source) as image:
            refuse(_check_header(image, name, modes, limits))
            return _decode(image, name, to_rgb)
    except (InvalidRequest, FileNotFoundError, MemoryError):
        raise
    except image_files.UnreadableImage as error:
        problem = Problem(name, str(error), "a whole PNG or JPEG")
    except PIL.UnidentifiedImageError:
        problem = Problem(name, "in neither format", "a PNG or JPEG")
    except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
        problem = Problem(name, "far larger than allowed", f"below {limits.pixel_bound:,} pixels in all")
    except Exception as error:  # whatever else fails in a codec is the file's fault
        problem = Problem(name, f"damaged ({type(error).__name__}: {str(error)[:100]})", "a whole PNG or JPEG")
    raise InvalidRequest([problem])


def _name(source: Source, kind: str) -> str:
    return str(source) if isinstance(source, (str, pathlib.Path)) else kind


def _open(source: Source) -> AbstractContextManager[PIL.Image.Image]:
    """The image with its header read; it is closed at the end, unless it is the caller's."""
    if isinstance(source, PIL.Image.Image):
        return contextlib.nullcontext(source)
    return image_files.opened(source, FORMATS)


def _check_header(image: PIL.Image.Image, name: str, modes: tuple[str, ...], limits: AnyLimits) -> list[Problem]:
    problems = checks.size(name, image.width, image.height, limits)
    if image.mode not in modes:
        problems.append(Problem(name, f"in mode {image.mode}", f"in one of the modes {', '.join(modes)}"))
    if any(";16" in str(tile) for tile in getattr(image, "tile", ())):  # PIL calls these RGB, and drops the low bytes
        problems.append(Problem(name, "of 16 bits per channel", "of 8 bits per channel"))
    if image_files.is_animated(image):
        problems.append(Problem(name, "animated", "a still image"))
    return problems


def _decode(image: PIL.Image.Image, name: str, to_rgb: ToRGB) -> RGBImage:
    colors = to_rgb(image_files.upright(image))
    if colors.mode in ("LA", "RGBA"):
        alpha = np.asarray(colors.getchannel("A"))
        if alpha.min() < 255:
            given = f"transparent in {(alpha < 255).sum():,} of its pixels"
            raise InvalidRequest([Problem(name, given, "opaque in every pixel")])
    return np.asarray(colors.convert("RGB"))
