"""Videos where no player is at hand: animated GIFs, and a row of frames. They need Pillow alone."""

import pathlib

import numpy as np
from jaxtyping import UInt8
from PIL import Image

GAP = 2  # white pixels between the frames of a strip
GIF_TICK = 10  # milliseconds: GIF counts in hundredths of a second


def save_gif(
    path: str | pathlib.Path, video: UInt8[np.ndarray, "f h w 3"], fps: float | int = 24, upscale: int = 1
) -> None:
    """Writes an endless GIF; each pixel becomes a square of `upscale` pixels.

    At 24 fps some frames are shown for 40 ms and some for 50, so that every frame begins within 5 ms of its time.

    Raises:
        ValueError: there are no frames, or fps or upscale is not above 0.
    """
    if not (len(video) and fps > 0 and upscale >= 1):
        raise ValueError(f"{len(video)} frames at fps={fps}, upscale={upscale}: give 1 or more of each")
    large = video.repeat(upscale, axis=1).repeat(upscale, axis=2)
    frames = [Image.fromarray(frame) for frame in large]
    starts = np.rint(np.arange(len(frames) + 1) * 1000 / (fps * GIF_TICK)).astype(int) * GIF_TICK
    frames[0].save(
        path,
        "GIF",
        save_all=True,
        append_images=frames[1:],
        duration=np.diff(starts).tolist(),
        loop=0,
        optimize=False,
    )


def contact_strip(
    video: UInt8[np.ndarray, "f h w 3"], columns: int = 8, upscale: int = 1
) -> UInt8[np.ndarray, "H W 3"]:
    """So many frames in a row, evenly spaced from the first to the last; all where there are fewer.

    Raises:
        ValueError: there are no frames, or columns or upscale is below 1.
    """
    if not len(video) or columns < 1 or upscale < 1:
        raise ValueError(f"{len(video)} frames, columns={columns}, upscale={upscale}: give 1 or more of each")
    chosen = np.rint(np.linspace(0, len(video) - 1, min(columns, len(video)))).astype(int)
    height, width = (side * upscale for side in video.shape[1:3])
    strip = np.full((height, len(chosen) * (width + GAP) - GAP, 3), 255, np.uint8)
    for column, index in enumerate(chosen):
        left = column * (width + GAP)
        strip[:, left : left + width] = video[index].repeat(upscale, axis=0).repeat(upscale, axis=1)
    return strip
