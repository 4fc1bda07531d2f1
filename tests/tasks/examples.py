"""Small valid requests of every kind, and images as files."""

import base64
import io
import itertools
import struct
import zlib

import numpy as np
import PIL.Image

from nova_jax.tasks import (
    TINY,
    ColorGuided,
    ImageSettings,
    Inpaint,
    InvalidRequest,
    Outpaint,
    RemoveBackground,
    TextToImage,
    Vary,
)

SETTINGS = ImageSettings(width=64, height=40, quality="premium", cfg_scale=3, seed=7, count=2)
SIZELESS = ImageSettings(quality="premium", cfg_scale=1.1, seed=0, count=5)


def picture(index: int = 0, height: int = 32, width: int = 40) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def mask(corner: tuple[tuple[int, int], tuple[int, int]] = ((0, 255), (255, 0))) -> np.ndarray:
    """All black but for a 2 x 2 corner."""
    pixels = np.zeros((32, 40), np.uint8)
    pixels[:2, :2] = corner
    return pixels


def minimal() -> dict[str, object]:
    """One request of each class, with nothing but what it needs."""
    return {
        "TEXT_IMAGE": TextToImage(text="a", limits=TINY),
        "COLOR_GUIDED_GENERATION": ColorGuided(text="a", colors=("#00ff7F",), limits=TINY),
        "IMAGE_VARIATION": Vary(images=(picture(),), limits=TINY),
        "INPAINTING": Inpaint(image=picture(), mask_prompt="dog", limits=TINY),
        "OUTPAINTING": Outpaint(image=picture(), mask_image=mask(), text="a", limits=TINY),
        "BACKGROUND_REMOVAL": RemoveBackground(image=picture(), limits=TINY),
    }


def full() -> dict[str, object]:
    """One request of each class, with every field away from its default."""
    texts = {"text": "é\n猫", "negative_text": "b", "limits": TINY}
    return {
        "TEXT_IMAGE": TextToImage(
            **texts,
            style="MAXIMALISM",
            condition_image=picture(1),
            control_mode="SEGMENTATION",
            control_strength=0,
            settings=SETTINGS,
        ),
        "COLOR_GUIDED_GENERATION": ColorGuided(
            **texts, colors=("#000000", "#ABCdef"), reference_image=picture(2), settings=SETTINGS
        ),
        "IMAGE_VARIATION": Vary(
            **texts, images=(picture(3), picture(4, 33, 100)), similarity_strength=0.2, settings=SETTINGS
        ),
        "INPAINTING": Inpaint(**texts, image=picture(5), mask_image=mask(), settings=SIZELESS),
        "OUTPAINTING": Outpaint(**texts, image=picture(6), mask_prompt="dog", mode="PRECISE", settings=SIZELESS),
        "BACKGROUND_REMOVAL": RemoveBackground(image=picture(7), limits=TINY),
    }


def file_of(pixels: np.ndarray, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def png_header(width: int, height: int, bits: int = 8) -> bytes:
    """A PNG that claims a size, with next to nothing in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def problems_of(make, *args, **kwargs) -> list[tuple[str, str, str]]:
    """The problems of a request, each (field, given, allowed); none if it is valid."""
    try:
        make(*args, **kwargs)
    except InvalidRequest as error:
        return list(error.problems)
    return []


def fields_of(make, *args, **kwargs) -> list[str]:
    """The fields at fault, each once, in the order reported."""
    return [field for field, _ in itertools.groupby(p.field for p in problems_of(make, *args, **kwargs))]
