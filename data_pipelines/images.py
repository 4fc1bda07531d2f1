"""Encoded images to arrays: what is allowed in, how transparency and size are settled, and the range networks see.

    decode     bytes -> sRGB, uint8 (1, h, w, 3), or (1, h, w, 4) where transparency is kept; see `media.image_files`
    composite  out = (alpha * rgb + (255 - alpha) * background) / 255, rounded to nearest, on the sRGB values
    fit        the largest centred box of the wanted shape, resampled once with Lanczos
    transform  uint8 0 .. 255 -> float32 -1 .. 1, as x / 127.5 - 1

The header is checked before a single pixel is decoded, so a small file that claims a huge image costs nothing.
"""

import dataclasses
from typing import Any, ClassVar

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8

from nova_jax import git_lfs
from nova_jax.media import image_files

FORMATS = ("PNG", "JPEG", "WEBP")
REDUCING_GAP = 2.0  # shrink by whole factors first, down to twice the wanted size, then resample


class Undecodable(ValueError):
    """Bytes that are not an acceptable image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoder:
    """Encoded PNG, JPEG (MPO: its first image) or WebP to one RGB or RGBA frame, upright and in sRGB.

    Attributes:
        size: (h, w) to fit the image into while decoding, or None for its own size. Large JPEGs are then decoded at a
            fraction of their size.
        background: the colour behind transparent pixels; None keeps them, and images have alpha as a fourth channel.
        max_pixels: images of more are refused by their header; of JPEGs that are decoded at a fraction of their size,
            that counts. Decoding takes 10 to 22 bytes for each (docs/data.md), so the default, of cameras with 24
            megapixels, costs half a gigabyte at worst; in each thread.
    """

    kind: ClassVar[str] = "image"
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".jpg", ".jpeg", ".webp")

    size: tuple[int, int] | None = None
    background: tuple[int, int, int] | None = (255, 255, 255)
    max_pixels: int = 25_000_000

    @property
    def max_bytes(self) -> int:
        """Larger files are refused before they are read: more than any image of so many pixels has."""
        return 16 * self.max_pixels

    def __call__(self, data: bytes) -> UInt8[np.ndarray, "1 h w c"]:
        """Decodes one image.

        Raises:
            Undecodable: not a still PNG, JPEG or WebP, damaged, or larger than `max_pixels`.
        """
        try:
            with image_files.opened(data, FORMATS) as image:
                if self.size is not None:  # twice the longer side, since EXIF may still swap the sides
                    image.draft(None, (2 * max(self.size), 2 * max(self.size)))
                self._check_header(image)
                frame = image_files.to_srgb(image_files.upright(image))
                if self.background is None:
                    frame = frame.convert("RGBA")
                elif frame.mode == "RGBA":
                    frame = composite(frame, self.background)
                return np.asarray(frame if self.size is None else fit(frame, self.size))[None]
        except (Undecodable, MemoryError):
            raise
        except PIL.UnidentifiedImageError as error:
            what = git_lfs.POINTER if git_lfs.is_pointer(data) else f"none of {', '.join(FORMATS)}"
            raise Undecodable(f"UnidentifiedImageError: {what}") from error
        except image_files.UnreadableImage as error:
            raise Undecodable(str(error)) from error
        except (PIL.Image.DecompressionBombError, PIL.Image.DecompressionBombWarning):
            raise Undecodable(f"the header claims more than the {self.max_pixels} pixels allowed") from None
        except Exception as error:  # the bytes are in memory, so whatever fails in the codec is their fault
            raise Undecodable(f"{type(error).__name__}: {error}") from error

    def _check_header(self, image: PIL.Image.Image) -> None:
        if image.width * image.height > self.max_pixels:
            raise Undecodable(
                f"the header claims {image.width} x {image.height} pixels; at most {self.max_pixels} are allowed: "
                "shrink it or raise max_pixels of the decoder"
            )
        if image_files.is_animated(image):
            raise Undecodable("an animation, not a still image")


ON_WHITE = Decoder()
WITH_ALPHA = Decoder(background=None)


def composite(rgba: PIL.Image.Image, background: tuple[int, int, int]) -> PIL.Image.Image:
    """Lays an image with alpha over one colour."""
    canvas = PIL.Image.new("RGB", rgba.size, background)
    canvas.paste(rgba, mask=rgba)
    return canvas


def fit(image: PIL.Image.Image, size: tuple[int, int]) -> PIL.Image.Image:
    """The centred box of `size`'s shape, as large as possible, resampled to `size` = (h, w)."""
    height, width = size
    if image.size == (width, height):
        return image
    scale = min(image.width / width, image.height / height)
    left, top = (image.width - scale * width) / 2, (image.height - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    return image.resize((width, height), PIL.Image.Resampling.LANCZOS, box=box, reducing_gap=REDUCING_GAP)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
    """Per-sample step for a loader: `pixels` to one size and to float in [-1, 1]; other entries pass through.

    Attributes:
        size: (h, w) to fit every frame into, or None when they already agree.
        flip: mirror half of the samples, all frames alike. Captions that say left or right then become wrong.
    """

    size: tuple[int, int] | None = None
    flip: bool = False

    def __call__(self, sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Transforms one sample; `rng` belongs to the sample's position in the stream."""
        frames = sample["pixels"]
        if self.size is not None and frames.shape[1:3] != self.size:
            size = self.size
            frames = np.stack([np.asarray(fit(PIL.Image.fromarray(frame), size)) for frame in frames])
        if self.flip and rng.random() < 0.5:
            frames = frames[:, :, ::-1]
        return sample | {"pixels": to_float(frames)}


def to_float(pixels: UInt8[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    """0 .. 255 to -1 .. 1."""
    out = pixels.astype(np.float32)
    out /= np.float32(127.5)
    out -= np.float32(1)
    return out
