"""MP4 files of H.264, written frame by frame through PyAV.

A file is written as PATH.partial and takes its name when it is whole; what fails leaves nothing behind. Never more than
one chunk of frames is held, beside those that the encoder looks ahead.

Colours are those of BT.709, and the file says so. H.264 as browsers play it stores colour at half the resolution
(4:2:0) and needs even sides: a frame of odd height or width is widened by its last row or column once more.

What is said about a video (`prompt`, `seed`, ..) goes into the comment, as JSON, and the prompt into the title.
"""

import contextlib
import errno
import fractions
import importlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

CRF = 16  # constant rate factor of x264: 0 lossless, 18 near the threshold of what is seen, 51 worst
PIXELS = "yuv420p"
LOOKAHEAD = 8  # frames; of 1280 x 704 pixels each costs 4 MB, and x264's own 40 held 250 MB
OLDEST_AV = 17  # 15.1 and 16.1 read BT.709 as BT.601, up to 23 levels off; 14.0 has no duration of a frame
BT709, LIMITED = 1, 1  # matrix, primaries and transfer; luma 16 .. 235

Path = str | os.PathLike[str]
Chunk = UInt8[np.ndarray, "_ h w 3"]


class Written(NamedTuple):
    """A video file."""

    path: pathlib.Path
    frames: int
    seconds: float


def write_mp4(
    path: Path,
    frames: Iterable[Chunk],
    fps: int = 24,
    metadata: Mapping[str, str] | None = None,
    *,
    crf: int = CRF,
) -> Written:
    """Writes a video whose frames arrive in chunks of any lengths.

    Args:
        path: of the file; one that is there is replaced.
        frames: uint8 (n, h, w, 3), 0 to 255, all of one size. An odd side grows by one pixel.
        fps: frames per second.
        metadata: what `read_metadata` gives back; `prompt` becomes the title as well.
        crf: quality, 0 (lossless but for the colour's resolution) to 51.

    Raises:
        ValueError: no frames, or frames of another type or size than the first.
        OSError: the file cannot be written, for example because the disk is full.
        ImportError: PyAV is not installed.
    """
    with _replacing(path) as partial, _opened(partial, path, "w", metadata) as container:
        count = _encode(container, path, frames, fps, crf)
    return Written(pathlib.Path(path), count, count / fps)


def join_mp4(parts: Sequence[Path], path: Path, metadata: Mapping[str, str] | None = None) -> Written:
    """Joins videos that `write_mp4` wrote with the same size and fps, packet by packet: nothing is encoded again.

    Raises:
        ValueError: no parts, or parts that differ in size or fps.
        OSError: a part cannot be read, or the file cannot be written.
        ImportError: PyAV is not installed.
    """
    if not parts:
        raise ValueError("there are no videos to join: give one or more")
    with _replacing(path) as partial, _opened(partial, path, "w", metadata) as output:
        stream, offset, first = None, 0, None
        for part in parts:
            with _opened(part, part, "r") as source:
                template = source.streams.video[0]
                form = (template.width, template.height, template.average_rate)
                first = first or form
                if form != first:
                    raise ValueError(f"{part} has (width, height, fps) {form}, the first part {first}: join equal ones")
                stream = stream or output.add_stream_from_template(template)
                offset += _copy(source, output, stream, path, offset)
    fps = first[2] if first else 1
    return Written(pathlib.Path(path), offset, float(offset / fps))


def read_metadata(path: Path) -> dict[str, str]:
    """What `write_mp4` was told about a video; of a video from elsewhere, the tags of its container.

    Raises:
        OSError: there is no such file, or it is no video.
        ImportError: PyAV is not installed.
    """
    with _opened(path, path, "r") as container:
        tags = dict(container.metadata)
    try:
        said = json.loads(tags.get("comment", ""))
    except ValueError:
        return tags
    return said if isinstance(said, dict) else tags


def _encode(container: Any, path: Path, frames: Iterable[Chunk], fps: int, crf: int) -> int:
    """Encodes all frames; returns their number."""
    stream, shape, count = None, (0, 0, 3), 0
    for chunk in frames:
        if chunk.dtype != np.uint8 or chunk.ndim != 4 or chunk.shape[3] != 3 or (stream and chunk.shape[1:] != shape):
            allowed = f"uint8 (n, {shape[0]}, {shape[1]}, 3) like the first" if stream else "uint8 (n, h, w, 3)"
            raise ValueError(f"a chunk of frames is {chunk.dtype} {chunk.shape}; it must be {allowed}")
        for frame in chunk:
            with _explained(path):
                if stream is None:
                    shape = frame.shape
                    stream = _add_stream(container, shape[0] + shape[0] % 2, shape[1] + shape[1] % 2, fps, crf)
                container.mux(stream.encode(_to_frame(frame, count, fps)))
            count += 1
    if stream is None:
        raise ValueError("there are no frames to write: give one or more")
    with _explained(path):
        container.mux(stream.encode(None))
    return count


def _add_stream(container: Any, height: int, width: int, fps: int, crf: int) -> Any:
    stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "rc-lookahead": str(LOOKAHEAD)})
    stream.height, stream.width, stream.pix_fmt = height, width, PIXELS
    context = stream.codec_context
    context.time_base = fractions.Fraction(1, fps)
    context.colorspace = context.color_primaries = context.color_trc = BT709
    context.color_range = LIMITED
    return stream


def _to_frame(image: UInt8[np.ndarray, "h w 3"], index: int, fps: int) -> Any:
    height, width = image.shape[:2]
    even = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    frame = require_av().VideoFrame.from_ndarray(np.ascontiguousarray(even), format="rgb24")
    frame = frame.reformat(format=PIXELS, dst_colorspace=BT709, dst_color_range=LIMITED)
    frame.pts, frame.time_base = index, fractions.Fraction(1, fps)
    return frame


def _copy(source: Any, output: Any, stream: Any, path: Path, offset: int) -> int:
    """Appends a part's packets `offset` frames later; returns how many frames they are."""
    template, count = source.streams.video[0], 0
    shift = round(offset / (template.average_rate * template.time_base))
    for packet in source.demux(template):
        if packet.dts is None:  # the flush at the end
            continue
        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, stream
        with _explained(path):
            output.mux(packet)
        count += 1
    return count


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[pathlib.Path]:
    """The path to write to; what is there takes the name `path` if all goes well, and is removed if not."""
    partial = pathlib.Path(f"{os.fspath(path)}.partial")
    try:
        with _explained(path):  # FFmpeg opens it with the first packet: too late to learn that the folder is missing
            open(partial, "wb").close()
        yield partial
        with _explained(path):
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _opened(file: Path, path: Path, mode: str, metadata: Mapping[str, str] | None = None) -> Iterator[Any]:
    """An MP4 container; errors name `path`. Metadata must be set before the first frame."""
    av = require_av()
    with _explained(path):
        options = {"movflags": "+faststart"} if mode == "w" else {}
        container = av.open(os.fspath(file), mode, format="mp4", options=options)
    if metadata:
        container.metadata.update({"title": metadata.get("prompt", ""), "comment": json.dumps(dict(metadata))})
    try:
        yield container
    except BaseException:
        with contextlib.suppress(av.error.FFmpegError, OSError):
            container.close()
        raise
    with _explained(path):
        container.close()


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns the errors of FFmpeg and of the system into an OSError that says what to do."""
    av = require_av()
    try:
        yield
    except (av.error.FFmpegError, OSError) as error:
        number = error.errno or errno.EIO
        if number == errno.ENOSPC:
            advice = "no space is left on the disk: free some, or give a path on another one"
        elif isinstance(error, FileNotFoundError):
            advice = "there is no such file or folder: make it, or give another path"
        else:
            advice = f"the video cannot be read or written ({error.strerror or error})"
        raise OSError(number, advice, os.fspath(path)) from error


def require_av(purpose: str = "reading and writing MP4") -> Any:
    """PyAV, of a version whose colours are right.

    Raises:
        ImportError: it is not installed, or too old; the sentence says what to install.
    """
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise ImportError(f"{purpose} needs av: pip install 'nova-jax[video]'") from error
    if int(av.__version__.partition(".")[0]) < OLDEST_AV:
        raise ImportError(
            f"{purpose} needs av {OLDEST_AV} or newer, and {av.__version__} is installed, which gets colours wrong: "
            f"pip install 'av>={OLDEST_AV}'"
        )
    return av
