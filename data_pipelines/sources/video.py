"""Encoded videos to a fixed number of frames at a fixed rate and size, for the sources that read files.

    Folder("videos", decoder=VideoDecoder(size=(36, 64), frames=25))
    WebDataset("shard-{000..012}.tar", decoder=VideoDecoder(size=(36, 64), frames=25))

Frame k shows what is seen at k / fps seconds after the first frame: the nearest frame that is not later (by more than
`TOLERANCE`). Sound, and what lies behind the last of these frames, is left out. Colours follow the matrix (BT.601,
BT.709, ..) and the range that the file names; one that names none is read as BT.601 of limited range.

Files come from strangers, so bytes are only handed to the two demuxers that their first bytes name (never to a playlist
that opens other files), sizes are checked before a frame is decoded, and work stops at a number of frames.
"""

import dataclasses
import errno
import fractions
import io
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from data_pipelines import images
from nova_jax import git_lfs
from nova_jax.media import mp4

FRAMES_PER_LATENT = 4  # of a causal autoencoder, after the first frame
TOLERANCE = fractions.Fraction(1, 1000)  # seconds; Matroska rounds times to milliseconds, and 24 fps are often 23.976
MICROSECONDS = 1_000_000  # per second: the unit of a container's duration
MOV_ATOMS = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")  # one of them begins a file, behind its size
EBML = b"\x1a\x45\xdf\xa3"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoDecoder:
    """Encoded MP4, MOV, WebM or Matroska to the first frames of its image.

    Attributes:
        size: (h, w) to fit every frame into: the largest centred box of its shape, resampled.
        frames: how many, 1 + 4k: what a causal autoencoder codes. A shorter video is refused.
        fps: frames per second of the result, whatever those of the file.
        max_pixels: videos with larger frames are refused by their header.
        max_seconds: longer videos are refused by their header.
        max_bytes: larger files are refused. Sources may have a bound of their own.
        max_fps: videos with more frames per second are refused, once so many are decoded.
    """

    size: tuple[int, int]
    frames: int
    fps: int = 24
    max_pixels: int = 4096 * 2304
    max_seconds: float | int = 600
    max_bytes: int = 256 * 2**20
    max_fps: int = 240

    kind: ClassVar[str] = "video"
    suffixes: ClassVar[tuple[str, ...]] = (".mp4", ".m4v", ".mov", ".webm", ".mkv")

    def __post_init__(self) -> None:
        if self.fps < 1 or min(self.size) < 1:
            raise ValueError(f"size={self.size} and fps={self.fps} must be 1 or more")
        if self.frames < 1 or self.frames % FRAMES_PER_LATENT != 1:
            below = max(1, self.frames - (self.frames - 1) % FRAMES_PER_LATENT)
            raise ValueError(
                f"frames={self.frames} must be 1 + 4k, as the autoencoder codes them: {below} or "
                f"{below + FRAMES_PER_LATENT}"
            )

    def __call__(self, data: bytes) -> UInt8[np.ndarray, "f h w 3"]:
        """Decodes the beginning of one video.

        Raises:
            Undecodable: neither MP4 nor Matroska, damaged, without images, too short, or beyond a limit.
            ImportError: PyAV is not installed.
        """
        av = mp4.require_av("reading videos")
        if len(data) > self.max_bytes:
            raise images.Undecodable(f"{len(data):,} bytes, more than max_bytes={self.max_bytes:,}")
        # Decoding begins already when a file is opened, to learn what is missing in its header. Rows are padded there.
        options = {"max_pixels": str(max(2 * self.max_pixels, 2**20)), "threads": "1"}
        try:
            with av.open(
                io.BytesIO(data), "r", format=_format(data), options=options, metadata_errors="replace"
            ) as container:
                stream = container.streams.best("video")
                self._check_header(container, stream)
                stream.codec_context.options = options
                stream.thread_count = 1
                return self._resample(container.decode(stream), stream)
        except images.Undecodable:
            raise
        except av.error.FFmpegError as error:  # one of them is a MemoryError, of a claim that nobody can fulfil
            what = "damaged, or far beyond max_pixels" if error.errno == errno.EINVAL else "damaged"
            raise images.Undecodable(f"{what}: {error.strerror or error}") from error
        except MemoryError:
            raise
        except Exception as error:  # the bytes are in memory, so whatever fails in the codec is their fault
            raise images.Undecodable(f"{type(error).__name__}: {error}") from error

    def _check_header(self, container: Any, stream: Any) -> None:
        if stream is None:
            raise images.Undecodable("no images in it, only other streams")
        if stream.codec_context is None:
            raise images.Undecodable("its codec is not known")
        self._check_pixels(stream.width, stream.height)
        if container.duration is not None and container.duration > self.max_seconds * MICROSECONDS:
            raise images.Undecodable(
                f"{container.duration / MICROSECONDS:,.1f} s long, more than max_seconds={self.max_seconds:,}"
            )

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise images.Undecodable(f"frames of {width} x {height} pixels; at most {self.max_pixels:,} are allowed")

    def _resample(self, decoded: Iterator[Any], stream: Any) -> UInt8[np.ndarray, "f h w 3"]:
        """The frames seen at k / fps."""
        result = np.empty((self.frames, *self.size, 3), np.uint8)
        k, shown, end, first = 0, None, fractions.Fraction(0), None
        for frame in self._bounded(decoded):
            time = frame.pts * stream.time_base
            first = time if first is None else first
            k = self._fill(result, k, shown, time - first, stream)
            if k == self.frames:
                return result
            shown, end = frame, time - first + _duration(frame, stream)
        k = self._fill(result, k, shown, end, stream)
        if k < self.frames:
            raise images.Undecodable(self._too_short(k))
        return result

    def _fill(self, result: np.ndarray, k: int, shown: Any, until: fractions.Fraction, stream: Any) -> int:
        """Writes a frame from k on, wherever it is seen until a time; returns the next k."""
        stop = min(self.frames, max(k, math.ceil((until - TOLERANCE) * self.fps)))
        if shown is not None and k < stop:
            result[k:stop] = self._image(shown, stream.sample_aspect_ratio or 1)
        return stop

    def _bounded(self, decoded: Iterator[Any]) -> Iterator[Any]:
        """The decoded frames, as long as their times rise and they are not too many."""
        most, last = math.ceil(self.frames * self.max_fps / self.fps) + 1, None
        for number, frame in enumerate(decoded):
            if frame.pts is None or (last is not None and frame.pts <= last):
                raise images.Undecodable(f"damaged: the times of its frames do not rise at frame {number}")
            if frame.is_corrupt:
                raise images.Undecodable(f"damaged: frame {number} cannot be decoded")
            if number > most:
                raise images.Undecodable(f"more than max_fps={self.max_fps} frames per second")
            last = frame.pts
            yield frame

    def _image(self, frame: Any, aspect: fractions.Fraction | int) -> UInt8[np.ndarray, "h w 3"]:
        """One frame upright, with square pixels, of the wanted size; `aspect` is that of its pixels."""
        width = max(1, round(frame.width * aspect))
        self._check_pixels(max(width, frame.width), frame.height)
        image = PIL.Image.fromarray(frame.to_ndarray(format="rgb24"))
        if width != frame.width:
            image = image.resize((width, frame.height), PIL.Image.Resampling.LANCZOS)
        turned = np.rot90(np.asarray(image), frame.rotation // 90)  # counterclockwise, as the file counts
        return np.asarray(images.fit(PIL.Image.fromarray(np.ascontiguousarray(turned)), self.size))

    def _too_short(self, found: int) -> str:
        enough = found - (found - 1) % FRAMES_PER_LATENT
        advice = f"; frames={enough} would do" if found else ""
        return f"too short: {found} frames at {self.fps} per second, fewer than frames={self.frames}{advice}"


def _duration(frame: Any, stream: Any) -> fractions.Fraction:
    """How long the last frame is seen, in seconds."""
    if frame.duration:
        return frame.duration * stream.time_base
    return 1 / stream.average_rate if stream.average_rate else fractions.Fraction(0)


def _format(data: bytes) -> str:
    """The demuxer for a file, by its first bytes."""
    if data[4:8] in MOV_ATOMS:
        return "mp4"
    if data[:4] == EBML:
        return "matroska"
    if git_lfs.is_pointer(data):
        raise images.Undecodable(git_lfs.POINTER)
    raise images.Undecodable("neither MP4 (MOV) nor Matroska (WebM)")
