"""Files of samples: names that tell prompts apart, and writing that never replaces what another call has sampled.

    a-red-circle-seed3.png             words that are the whole prompt
    a-red-circle-1f2e3d4c-seed3.png    words and a digest, where the words leave out a letter or a sign
    a-red-circle-seed3-2.png           a number, where a file of this name holds something else

The same image, sampled once more, keeps its file: nothing is written twice.
"""

import contextlib
import dataclasses
import filecmp
import hashlib
import io
import itertools
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, PngImagePlugin

from nova_jax.generation.settings import SamplingSettings

WORDS, WORD_BYTES = 60, 120  # the most characters of a text in a file name, and the most bytes: systems take 255 in all


def name(text: str, seed: int, *, kind: str = "", facts: Mapping[str, str] | None = None) -> str:
    """The name of a file without its suffix: kind, words of the text, digest, seed.

    Args:
        text: The prompt.
        seed: The seed of the starting noise.
        kind: The kind of file, such as a task.
        facts: All that decides the sample; the digest is of these. None: the prompt decides, and there is a digest only
            where the words leave something of it out, so that two prompts never share a name.
    """
    words = "-".join("".join(c if c.isalnum() else " " for c in text.lower()).split())[:WORDS]
    words = words.encode()[:WORD_BYTES].decode(errors="ignore").strip("-")
    is_whole = facts is None and text != "" and words.replace("-", " ") == text
    identity = text if facts is None else json.dumps(dict(facts))
    digest = hashlib.sha256(identity.encode(errors="surrogatepass")).hexdigest()[:8]
    return "-".join([*filter(None, (kind, words, "" if is_whole else digest)), f"seed{seed}"])


def save(place: pathlib.Path, write: Callable[[pathlib.Path], object], *, overwrite: bool = False) -> pathlib.Path:
    """Writes a file at `place`, or beside it under the first number that is free; returns where it is.

    Args:
        place: The path wanted; its folder is made.
        write: Writes the file at a path. What fails leaves none.
        overwrite: Whether to replace what is at `place`.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if overwrite:
        write(place)
        return place
    path = next(path for path in _numbered(place) if _is_claimed(path))
    try:
        write(path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return _without_copy(place, path)


@contextlib.contextmanager
def folder(place: pathlib.Path, *, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """A new folder at `place`, or beside it under the first number that is free; what fails at once leaves none.

    With `overwrite`, it may be there already.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    path = place if overwrite else next(path for path in _numbered(place) if _is_made(path))
    path.mkdir(exist_ok=True)
    try:
        yield path
    except BaseException:
        with contextlib.suppress(OSError):  # it holds something already
            path.rmdir()
        raise


def save_png(
    place: pathlib.Path,
    picture: UInt8[np.ndarray, "h w c"],
    metadata: Mapping[str, str],
    *,
    upscale: int = 1,
    overwrite: bool = False,
) -> pathlib.Path:
    """Writes an image as PNG, see `save`.

    Args:
        place: The path wanted.
        picture: RGB or RGBA.
        metadata: For its text chunks.
        upscale: Each pixel becomes a square of so many.
        overwrite: Whether to replace what is at `place`.
    """
    info = PngImagePlugin.PngInfo()
    for key, value in metadata.items():
        info.add_itxt(key, value)
    image = Image.fromarray(picture)
    image = image.resize((image.width * upscale, image.height * upscale), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    image.save(stream, "PNG", pnginfo=info)
    return save(place, lambda path: _write_whole(path, stream.getvalue()), overwrite=overwrite)


def save_pngs(
    folder: str | pathlib.Path,
    pixels: np.ndarray,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    upscale: int = 1,
    *,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Writes the first frame of each image as PNG, with prompt, seed and settings in its text chunks.

    What is there already stays, unless `overwrite` says otherwise: and `name` makes the names.
    """
    said = {key: str(value) for key, value in dataclasses.asdict(settings).items()}
    return [
        save_png(
            pathlib.Path(folder) / f"{name(prompt, seed)}.png",
            picture[0],
            {"prompt": prompt, "seed": str(seed), **said},
            upscale=upscale,
            overwrite=overwrite,
        )
        for picture, prompt, seed in zip(pixels, prompts, seeds, strict=True)
    ]


def save_grid(path: str | pathlib.Path, pixels: np.ndarray, *, columns: int, upscale: int = 1) -> pathlib.Path:
    """Writes the first frames of many images as one PNG, `columns` in a row, two pixels apart."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    count, _, height, width, _ = pixels.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + 2) - 2, columns * (width + 2) - 2, 3), 255, np.uint8)
    for i, picture in enumerate(pixels):
        top, left = i // columns * (height + 2), i % columns * (width + 2)
        sheet[top : top + height, left : left + width] = picture[0]
    image = Image.fromarray(sheet)
    image.resize((image.width * upscale, image.height * upscale), Image.Resampling.NEAREST).save(path)
    return path


def _numbered(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """The path itself, then with the numbers from 2 on behind its name."""
    yield place
    for number in itertools.count(2):
        yield place.with_name(f"{place.stem}-{number}{place.suffix}")


def _is_made(path: pathlib.Path) -> bool:
    """Makes a folder; False where there is something already."""
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _is_claimed(path: pathlib.Path) -> bool:
    """Makes an empty file, so that no other process takes the name; False where there is one already."""
    try:
        path.open("xb").close()
    except FileExistsError:
        return False
    return True


def _without_copy(place: pathlib.Path, path: pathlib.Path) -> pathlib.Path:
    """The earlier file of the same bytes in place of `path`, which is removed; `path` where there is none."""
    for earlier in itertools.takewhile(lambda other: other != path, _numbered(place)):
        if earlier.is_file() and filecmp.cmp(earlier, path, shallow=False):
            path.unlink()
            return earlier
    return path


def _write_whole(path: pathlib.Path, data: bytes) -> None:
    """Writes a file that is there as a whole or as it was before."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
