"""Small encoded images and tar files."""

import io
import pathlib
import tarfile

import numpy as np
import PIL.Image
import pytest


def encode(pixels: np.ndarray, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def picture(index: int, size: int = 8) -> np.ndarray:
    """Noise, so that no byte of its file is idle; images of different indices differ."""
    return np.random.default_rng(index).integers(0, 256, (size, size, 3), np.uint8)


@pytest.fixture(scope="session")
def pictures():
    return [picture(i) for i in range(12)]


@pytest.fixture(scope="session")
def png():
    return lambda pixels, **options: encode(pixels, "PNG", **options)


@pytest.fixture(scope="session")
def jpeg():
    return lambda pixels, **options: encode(pixels, "JPEG", quality=95, **options)


@pytest.fixture
def make_tar(tmp_path: pathlib.Path):
    def make(name: str, files: dict[str, bytes], form: int = tarfile.USTAR_FORMAT) -> str:
        path = tmp_path / name
        with tarfile.open(path, "w", format=form) as tar:
            for member, data in files.items():
                info = tarfile.TarInfo(member)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return str(path)

    return make


@pytest.fixture
def emoji_like(pictures, png, make_tar):
    """Two shards of six samples: image, caption, JSON."""
    files = []
    for i, pixels in enumerate(pictures):
        json = f'{{"name": "json name {i}"}}'.encode()
        files.append({f"{i:05d}.png": png(pixels), f"{i:05d}.txt": f"caption {i}\n".encode(), f"{i:05d}.json": json})
    shards = [{k: v for part in files[a : a + 6] for k, v in part.items()} for a in (0, 6)]
    return tuple(make_tar(f"shard-{i:03d}.tar", shard) for i, shard in enumerate(shards))
