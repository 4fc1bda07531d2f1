"""Mutated files of every kind that strangers send: each is read, or refused in a sentence, in a second and 200 MB.

    python -m tests.fuzz                                        100,000 inputs of each kind
    python -m tests.fuzz --kinds tars --first 4711 --count 1    one of them once more

Input n of a kind is made from a good one by a generator seeded with (kind, seed, n), so it is the same everywhere. What
fails is printed and written to the folder `--out`. `test_fuzz.py` tries a small share of each kind.
"""

import argparse
import collections
import contextlib
import copy
import csv
import dataclasses
import io
import json
import logging
import pathlib
import random
import resource
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image

from data_pipelines import images, sources
from nova_jax import tasks
from nova_jax.tasks import InvalidRequest, image_inputs
from nova_jax.weights import safetensors
from tests.media import encoded
from tests.tasks import examples

MAX_SECONDS, MAX_BYTES, MAX_LINE = 1.0, 200 * 2**20, 2000
MAX_PIXELS = 2**22  # the default of 64 million is 256 MB when it is used up: no mistake, but more than is allowed here
PNG_START = b"\x89PNG\r\n\x1a\n"
TOKENS = [  # what parsers of text and of numbers stumble over
    *(b"", b"\0", b"\n", b"\r", b'"', b"'", b"\\", b",", b":", b"[", b"]", b"{", b"}", b"[" * 2000, b'{"a":' * 2000),
    *(b"-1", b"0", b"1e999", b"NaN", b"-Infinity", b"null", b"true", b"9" * 30, b"9" * 5000, b"18446744073709551615"),
    *(b"\\ud83d", b"\\u0000", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\xbd", b"\xf0\x9f\x98\x80", b"../", b"/", b"~"),
    *(b"__metadata__", b"file_name", b"caption", b"\x80", b"\xff" * 8, b"\0" * 512, b"7777777", b"size=99999999999"),
]
VALUES = [  # of JSON
    *(
        None,
        True,
        -1,
        0,
        2**31,
        10**40,
        0.5,
        float("nan"),
        float("inf"),
        "",
        "a",
        "a red circle",
        1,
        7,
        "\ud83d",
        "é\0",
        "x" * 5000,
    ),
    *([], {}, [[]], [None], {"": None}, {"\ud83d": 1}, ["#000000"] * 50, [{"text": "a"}] * 30, {"bytes": "QUJD"}),
]


class Failed(Exception):
    """An input that is neither read nor refused as documented."""


class TooSlow(BaseException):
    """Raised inside a reader that has had its second; no reader catches it."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of input.

    Attributes:
        good: makes the inputs that are mutated.
        read: reads one from its bytes, with a folder to write to; raises one of `errors`, or `Failed`.
        errors: what its readers document.
        mutate: changes the bytes, by a generator.
        repair: makes lengths and checksums fit again, so that more than the first check is tried.
    """

    good: Callable[[], list[bytes]]
    read: Callable[[bytes, pathlib.Path], None]
    errors: tuple[type[Exception], ...]
    mutate: Callable[[bytes, random.Random], bytes]
    repair: Callable[[bytes], bytes] = bytes


def run(
    name: str, first: int, count: int, seed: int, folder: pathlib.Path
) -> tuple[collections.Counter[str], dict[int, str]]:
    """Tries inputs first .. first + count - 1 of one kind; returns how many were read or refused, and what failed."""
    kind, outcomes, failures = KINDS[name], collections.Counter[str](), {}
    good = kind.good()
    for index in range(first, first + count):
        try:
            outcomes[_try(kind, make(name, index, seed, good), folder)] += 1
        except Failed as error:
            outcomes["failed"] += 1
            failures[index] = str(error)
    return outcomes, failures


def make(name: str, index: int, seed: int = 0, good: list[bytes] | None = None) -> bytes:
    """Input `index` of a kind."""
    kind, rng = KINDS[name], random.Random(f"{name} {seed} {index}")
    data = kind.mutate(rng.choice(good or kind.good()), rng)
    return kind.repair(data) if rng.random() < 0.6 else data


def _try(kind: Kind, data: bytes, folder: pathlib.Path) -> str:
    """Reads one input within the limits; "read" or "refused"."""
    with _limited():
        try:
            kind.read(data, folder)
            return "read"
        except kind.errors as error:
            _check_sentence(error)
            return "refused"
        except Failed:
            raise
        except Exception as error:
            raise Failed("".join(traceback.format_exception(error)[-4:])[-1500:]) from error


def _check_sentence(error: Exception) -> None:
    """A message that says something, that a terminal can show, and that a person can read."""
    text = f"{type(error).__name__}: {error}"
    if " " not in str(error).strip():
        raise Failed(f"no sentence: {text}")
    if any(ord(letter) in range(0xD800, 0xE000) for letter in text):
        raise Failed(f"half a character in the message: {text!a}")
    if (longest := max(map(len, text.splitlines()))) > MAX_LINE:
        raise Failed(f"a line of {longest} letters: {text[:300]!a}")


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Measures processor time and the peak of memory; a reader that hangs is stopped."""

    def stop(*_: Any) -> None:
        raise TooSlow

    before, start, old = _reset_peak(), time.process_time(), signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS)
    try:
        yield
    except TooSlow:
        raise Failed(f"stopped after {MAX_SECONDS} s") from None
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
    if (taken := time.process_time() - start) > MAX_SECONDS:
        raise Failed(f"took {taken:.1f} s")
    if (grown := _peak() - before) > MAX_BYTES:
        raise Failed(f"took {grown / 2**20:.0f} MB")


def _reset_peak() -> int:
    """Forgets the peak of resident memory where the system can; returns what is resident."""
    with contextlib.suppress(OSError):  # where it cannot, the peak so far stays, and less is noticed
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """The peak of resident memory in bytes."""
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def mutate_bytes(data: bytes, rng: random.Random, head: int = 600) -> bytes:
    """A few changes, most of them within the first `head` bytes."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 5))):
        place = rng.randrange(max(1, min(len(found), head) if rng.random() < 0.8 else len(found)))
        match rng.randrange(7):
            case 0:
                found[place : place + 1] = bytes([rng.randrange(256)])
            case 1:
                found[place : place + 1] = bytes([found[place] ^ 1 << rng.randrange(8)]) if found else b"\0"
            case 2:
                found[place : place + rng.choice((0, 1, 4, 20))] = rng.choice(TOKENS)
            case 3:
                del found[place : place + rng.choice((1, 2, 8, 100))]
            case 4:
                part = found[place : place + rng.choice((1, 8, 64, 512))]
                found[place:place] = part * rng.choice((1, 1, 2, 50))
            case 5:
                found[place : place + 4] = struct.pack(
                    rng.choice("><") + "I", rng.choice((0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
                )
            case _ if rng.random() < 0.3:
                del found[rng.randrange(len(found) + 1) :]
    return bytes(found)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, or a value, or a key, of the object that they are."""
    if rng.random() < 0.4:
        return mutate_bytes(data, rng)
    body = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder = rng.choice(list(_holders(body)))
        key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        match rng.randrange(4):
            case 0 if isinstance(holder, dict):
                holder[rng.choice(("", "image", "text", "\ud83d", "a" * 3000, "seed"))] = holder.pop(key)
            case 1 if isinstance(holder[key], str):
                holder[key] = mutate_bytes(holder[key].encode("utf-8", "surrogatepass"), rng).decode("utf-8", "replace")
            case _:
                holder[key] = copy.deepcopy(rng.choice(VALUES))
    return json.dumps(body).encode()


def _holders(value: Any) -> Iterator[Any]:
    """All objects and lists in a value that hold something."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if inner:
        yield value
    for item in inner:
        yield from _holders(item)


def good_headers() -> list[bytes]:
    """Safetensors files."""
    arrays = {"a.w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(2, np.float16), "e": np.ones((0, 4))}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "x"
        made = []
        for tensors, metadata in ((arrays, {"format": "pt"}), ({"w": np.zeros(1, np.int64)}, None), ({}, None)):
            safetensors.write(path, tensors, metadata)
            made.append(path.read_bytes())
    return made


def fit_header(data: bytes) -> bytes:
    """The length before the header, made that of the JSON."""
    end = data.rfind(b"}") + 1
    end += len(data[end:]) - len(data[end:].lstrip(b" "))
    return (end - 8).to_bytes(8, "little") + data[8:] if end > 8 else data


def read_header(data: bytes, folder: pathlib.Path) -> None:
    """Reads a safetensors file and every byte of its tensors."""
    path = folder / "x.safetensors"
    path.write_bytes(data)
    held = sum(len(array.tobytes()) for array in safetensors.read(path).values())
    if held > len(data):
        raise Failed(f"tensors of {held} bytes in a file of {len(data)}")


def good_requests() -> list[bytes]:
    """Requests of every task."""
    made = [request for form in (examples.minimal, examples.full) for request in form().values()]
    frame = examples.picture(0, tasks.TINY_REEL.height, tasks.TINY_REEL.width)
    picture = {"format": "png", "source": {"bytes": examples.base64_of(examples.file_of(frame))}}
    config = {"fps": 24, "durationSeconds": 6, "dimension": "64x36", "seed": 7}
    videos = [
        ("TEXT_VIDEO", "textToVideoParams", {"text": "a dog", "images": [picture]}, config),
        (
            "MULTI_SHOT_AUTOMATED",
            "multiShotAutomatedParams",
            {"text": "a dog. " * 20},
            config | {"durationSeconds": 12},
        ),
        ("MULTI_SHOT_MANUAL", "multiShotManualParams", {"shots": [{"text": "a"}, {"text": "b", "image": picture}]}, {}),
    ]
    bodies = list(map(tasks.to_json, made))
    for task, name, parameters, settings in videos:
        bodies.append({"taskType": task, name: parameters, "videoGenerationConfig": settings})
    return [json.dumps(body).encode() for body in bodies]


def read_request(data: bytes, _: pathlib.Path) -> None:
    """Reads a request; what was read is written and read again."""
    text = data.decode("utf-8", "replace")
    limits = tasks.TINY_REEL if "videoGenerationConfig" in text else tasks.TINY
    request = tasks.parse_request(text, limits)
    tasks.parse_request(tasks.to_json(request), request.limits)


def png(index: int, **options: Any) -> bytes:
    """The file of a small image."""
    return examples.file_of(examples.picture(index, 8, 8), **options)


def good_tars() -> list[bytes]:
    """Shards of two samples in each form of tar."""
    long = "folder/" * 20
    made = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
            for index, stem in enumerate(("0", "é", long if form != tarfile.USTAR_FORMAT else "folder/1")):
                files = {"png": png(index), "txt": b"a caption", "json": b'{"name": "a name"}'}
                for suffix, content in files.items():
                    info = tarfile.TarInfo(f"{stem}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        made.append(stream.getvalue())
    return made


def mutate_tar(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed, most of them in one header."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng, len(data))
    start = 512 * rng.randrange(max(1, len(data) // 512))
    changed = mutate_bytes(data[start : start + 512], rng)
    return data[:start] + (changed + bytes(512))[:512] + data[start + 512 :]


def fit_tar(data: bytes) -> bytes:
    """The checksums of all headers of a tar, made to fit."""
    blocks = [data[at : at + 512] for at in range(0, len(data), 512)]
    return b"".join(_fit_block(block) if block[257:262] == b"ustar" else block for block in blocks)


def _fit_block(block: bytes) -> bytes:
    total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    return block[:148] + b"%06o\0 " % total + block[156:]


def read_tar(data: bytes, folder: pathlib.Path) -> None:
    """Reads every sample of a shard, with captions of one kind or the other."""
    path = folder / "x.tar"
    path.write_bytes(data)
    _read_all(sources.WebDataset(str(path), caption=("txt", "json:name")[zlib.crc32(data) % 2]))


def _read_all(source: Any) -> None:
    for index in range(len(source)):
        try:
            sample = source[index]
        except sources.CorruptRecord as error:
            _check_sentence(error)
            continue
        sample["caption"].encode()  # a UnicodeEncodeError is a failure
        _check_pixels(sample["pixels"][0])


def _check_pixels(pixels: np.ndarray) -> None:
    if pixels.dtype != np.uint8 or not all(pixels.shape):
        raise Failed(f"pixels {pixels.dtype} {pixels.shape}")


def good_pictures() -> list[bytes]:
    """PNG, JPEG and WebP files of many kinds."""
    image = PIL.Image.fromarray(examples.picture())
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    profile = {"icc_profile": encoded.profile("p3")}
    modes = [examples.file_of(np.asarray(image.convert(mode))) for mode in ("L", "LA", "RGBA")]
    made = [(image, {}), (image, profile | {"exif": exif.tobytes()}), (image.convert("P"), {"transparency": 3})]
    pngs = [_saved(picture, "PNG", options) for picture, options in made]
    samples = np.arange(40 * 32).reshape(32, 40, 1) * 50
    pngs += [encoded.png(samples, 16, encoded.GRAY, {b"tRNS": b"\0\1"}), encoded.png(samples % 4, 2, encoded.GRAY)]
    jpegs = [{}, profile | {"exif": exif.tobytes()}, {"progressive": True}, {"quality": 100, "subsampling": 0}]
    pictures = [_saved(image, "JPEG", options) for options in jpegs] + [_saved(image.convert("CMYK"), "JPEG", {})]
    preview = {"save_all": True, "append_images": [image]}
    return [*modes, *pngs, *pictures, _saved(image, "MPO", preview), _saved(image, "WEBP", profile)]


def _saved(image: PIL.Image.Image, form: str, options: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def fit_picture(data: bytes) -> bytes:
    """The checksums of the chunks of a PNG, made to fit."""
    if not data.startswith(PNG_START):
        return data
    found, at = PNG_START, 8
    while at + 8 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        found += data[at:end] + zlib.crc32(data[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return found


def read_pictures(data: bytes, _: pathlib.Path) -> None:
    """Reads an image as training data, in two ways, and as image and mask of a request."""
    readers = (
        (images.Decoder(max_pixels=MAX_PIXELS), images.Undecodable),
        (images.Decoder(size=(8, 8), background=None, max_pixels=MAX_PIXELS), images.Undecodable),
        (lambda data: [image_inputs.read_image(data, tasks.TINY)], InvalidRequest),
        (lambda data: [image_inputs.read_mask(data, tasks.TINY)], InvalidRequest),
    )
    refusals = []
    for read, error in readers:
        try:
            _check_pixels(read(data)[0])
        except error as refusal:
            _check_sentence(refusal)
            refusals.append(refusal)
    if len(refusals) == len(readers):
        raise refusals[0]


def good_captions() -> list[bytes]:
    """Metadata files: JSON lines and, behind the letter c, CSV; behind t the text beside an image."""
    rows = [{"file_name": f"{name}.png", "caption": f"an image, {name}", "other": 3} for name in "ab"]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    return ["\n".join(map(json.dumps, rows)).encode(), b"c" + stream.getvalue().encode(), b"tone caption"]


def mutate_captions(data: bytes, rng: random.Random) -> bytes:
    """Bytes changed behind the first, or a value of a JSON line."""
    if data.startswith(b"{") and rng.random() < 0.5:
        return b"\n".join(mutate_json(line, rng) for line in data.split(b"\n"))
    return data[:1] + mutate_bytes(data[1:], rng)


def read_captions(data: bytes, folder: pathlib.Path) -> None:
    """Reads a folder of two images with these captions."""
    place = {b"c": "metadata.csv", b"t": "a.txt"}.get(data[:1], "metadata.jsonl")
    root = folder / place.replace(".", "_")
    if not root.is_dir():
        root.mkdir()
        for index, name in enumerate("ab"):
            (root / f"{name}.png").write_bytes(png(index))
    (root / place).write_bytes(data if place == "metadata.jsonl" else data[1:])
    _read_all(sources.Folder(root))


KINDS = {
    "headers": Kind(good_headers, read_header, (safetensors.WeightsError,), mutate_bytes, fit_header),
    "requests": Kind(good_requests, read_request, (InvalidRequest,), mutate_json),
    "tars": Kind(good_tars, read_tar, (sources.DatasetError,), mutate_tar, fit_tar),
    "pictures": Kind(good_pictures, read_pictures, (images.Undecodable,), mutate_bytes, fit_picture),
    "captions": Kind(good_captions, read_captions, (sources.DatasetError,), mutate_captions),
}


def main() -> None:
    """Tries inputs of the kinds asked for; exits with 1 if any failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("fuzz-failures"))
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    has_failed = False
    for name in args.kinds:
        with tempfile.TemporaryDirectory() as folder:
            outcomes, failures = run(name, args.first, args.count, args.seed, pathlib.Path(folder))
        print(f"{name}: {dict(outcomes)}", flush=True)
        for index, what in failures.items():
            args.out.mkdir(parents=True, exist_ok=True)
            (args.out / f"{name}-{args.seed}-{index}").write_bytes(make(name, index, args.seed))
            print(f"  input {index}: {what}")
        has_failed |= bool(failures)
    sys.exit(has_failed)


if __name__ == "__main__":
    main()
