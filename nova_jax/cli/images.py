"""Requests on the command line: from a JSON file or from options to a validated request, and from there to PNG files.

Options are rewritten as the public JSON, so that one reader finds what is wrong with either; problems name what was
typed: `--mask-image mask.png` instead of `inPaintingParams.maskImage`.
"""

import base64
import dataclasses
import hashlib
import json
import os
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nova_jax import generation
from nova_jax.parallel import distributed
from nova_jax.tasks import InvalidRequest, Limits, Problem, checks, json_form
from nova_jax.tasks.json_form import CONFIG, SETTINGS, TASK
from nova_jax.tasks.limits import Range
from nova_jax.tasks.problems import refuse
from nova_jax.tasks.request import Request

TASKS = {
    "text-to-image": "TEXT_IMAGE",
    "inpaint": "INPAINTING",
    "outpaint": "OUTPAINTING",
    "remove-background": "BACKGROUND_REMOVAL",
    "vary": "IMAGE_VARIATION",
    "color-guided": "COLOR_GUIDED_GENERATION",
}
STANDARD_INPUT = pathlib.Path("-")
UPSCALE = Range(1, 64)
TILE = Range(2, 4096)  # latents a side
COUNT = Range(1, 10_000)  # images of a prompt in one call

Options = Mapping[str, Any]  # by the field of the request or of its settings


def given(options: Any, *names: str) -> dict[str, Any]:
    """The fields of a dataclass (of these names, if there are any) that hold something."""
    names = names or tuple(field.name for field in dataclasses.fields(options))
    return {name: value for name in names if (value := getattr(options, name)) not in (None, ())}


def check_source(prompts: Sequence[str], request: Any, task: str | None, options: Options) -> None:
    """Refuses anything but one of prompts, a request and a task.

    Raises:
        ValueError: none of them, several of them, or options beside them that they do not read.
    """
    sources = [name for name, value in {"prompts": prompts, "--request": request, "--task": task}.items() if value]
    if len(sources) != 1:
        raise ValueError(
            f"{' and '.join(sources) or 'nothing'} given: give prompts, or --request, or --task with its --text"
        )
    read = {"prompts": ("seed", "count"), "--request": (), "--task": options}[sources[0]]
    idle = [flag(name) for name in options if name not in read]
    if idle and prompts:
        raise ValueError(f"{', '.join(idle)} says nothing about prompts: name the --task")
    if idle:
        raise ValueError(f"{', '.join(idle)} beside --request: write it into the request, which holds everything")


def check_numbers(upscale: int, seed: int | None = None, count: int | None = None, tile: int | None = None) -> None:
    """Refuses an enlargement or a tile, and a seed and number of images of prompts, that cannot be drawn.

    Raises:
        InvalidRequest: with every number out of range.
    """
    problems = checks.whole("--upscale", upscale, UPSCALE)
    problems += [] if count is None else checks.whole("--count", count, COUNT)
    last = generation.SEEDS.high - max(0, (count or 1) - 1)  # of the first image; the others count up
    problems += [] if seed is None else checks.whole("--seed", seed, Range(0, max(0, last)))
    problems += [] if tile is None else checks.whole("--tile", tile, TILE)
    refuse(problems)


def check_folder(folder: pathlib.Path) -> None:
    """Refuses a folder that cannot be made or written to, before anything is drawn for it.

    Raises:
        ValueError: it, or the nearest above it that is there, is a file, or closed to writing.
    """
    there = next((path for path in (folder, *folder.parents) if path.exists()), folder)
    if not there.is_dir() or not os.access(there, os.W_OK):
        fault = "may not be written to" if there.is_dir() else "is no folder"
        raise ValueError(f"nothing can be written to {folder}, as {there} {fault}: give another one with --out")


def read_request(
    trained: generation.TrainedRun, path: pathlib.Path | None, task: str | None, options: Options
) -> Request:
    """The request of a JSON file, or else of a task's options, within the sizes that suit the model.

    Raises:
        InvalidRequest: with every problem.
        ValueError: there is no such file, or the run cannot carry it out.
    """
    limits = generation.images.limits_of(trained)
    if path is None:
        assert task is not None
        request = from_options(task, options, limits)
    else:
        request = json_form.parse_request(read_text(path), limits)
    generation.images.check_network(trained, [request])
    return request


def from_options(task: str, options: Options, limits: Limits) -> Request:
    """The request that a task's options ask for; images are paths.

    Raises:
        InvalidRequest: with every problem, each named by its option.
    """
    form = json_form.FORMS[TASKS[task]]
    keys = {**form.keys, **(SETTINGS if form.has_settings else {})}
    allowed = f"one of {', '.join(map(flag, keys))}"
    problems = [Problem(flag(name), f"no option of {task}", allowed) for name in options if name not in keys]
    files, missing = _read_files({name: value for name, value in options.items() if name in form.keys})
    values = {**options, **files}
    body = {TASK: TASKS[task], form.parameters: {key: values.get(name) for name, key in form.keys.items()}}
    if form.has_settings:
        body[CONFIG] = {key: values.get(name) for name, key in SETTINGS.items()}
    named = _flags(form, options)
    try:
        request = json_form.parse_request(body, limits)
    except InvalidRequest as error:
        found = [problem._replace(field=named.get(problem.field, problem.field)) for problem in error.problems]
        told = {problem.field for problem in missing}  # a file that cannot be read is not left out as well
        problems += missing + [problem for problem in found if problem.field not in told]
        raise InvalidRequest(problems) from None
    if problems + missing:
        raise InvalidRequest(problems + missing)
    return request


def settings_of(request: Request, sampling: Options) -> generation.SamplingSettings | None:
    """How to draw a request where options say so; None: as its quality asks.

    Raises:
        ValueError: an option that the request decides itself.
    """
    if "guidance_scale" in sampling:
        raise ValueError("--guidance-scale is for prompts: guidance of a request is --cfg-scale, in JSON cfgScale")
    settings = getattr(request, "settings", None)
    if sampling and settings is None:
        raise ValueError(f"{', '.join(map(flag, sampling))} does nothing here: an alpha is drawn in one way only")
    if not sampling:
        return None
    assert settings is not None
    standard = generation.SamplingSettings(num_steps=generation.images.STEPS[settings.quality])
    return dataclasses.replace(standard, **sampling)


def draw(
    trained: generation.TrainedRun,
    request: Request,
    settings: generation.SamplingSettings | None,
    *,
    out: pathlib.Path,
    run: pathlib.Path,
    upscale: int = 1,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Draws a request and saves its images; returns their paths. The main process alone writes."""
    pictures = generation.images.draw(trained, request, settings)
    if not distributed.is_main():
        return []
    said = {"request": json.dumps(describe(request)), "run": str(run), "step": str(trained.step)}
    if settings is not None:
        said["sampling"] = json.dumps(dataclasses.asdict(settings))
    return save(out, pictures, request, said, upscale=upscale, overwrite=overwrite)


def save(
    folder: pathlib.Path,
    pictures: generation.images.Pictures,
    request: Request,
    said: Mapping[str, str],
    *,
    upscale: int = 1,
    overwrite: bool = False,
) -> list[pathlib.Path]:
    """Writes each image as PNG, with what is said of all and its own seed in its text chunks.

    A file's name holds the task, the text, a digest of what is said, and the seed, see `files`.
    """
    task = next(name for name, form in TASKS.items() if json_form.FORMS[form].request is type(request))
    settings, text = getattr(request, "settings", None), getattr(request, "text", None) or ""
    paths = []
    for seed, picture in enumerate(pictures, start=0 if settings is None else settings.seed):
        place = folder / f"{generation.files.name(text, seed, kind=task, facts=said)}.png"
        metadata = {**said, "seed": str(seed)}
        paths.append(generation.files.save_png(place, picture, metadata, upscale=upscale, overwrite=overwrite))
    return paths


def describe(request: Request) -> dict[str, Any]:
    """The public form of a request, with size and digest of each image in place of the image."""
    body = json_form.to_json(request)
    form = json_form.FORMS[body[TASK]]
    for field, key in form.keys.items():
        value = getattr(request, field)
        if isinstance(value, np.ndarray):
            body[form.parameters][key] = digest(value)
        elif field == "images":
            body[form.parameters][key] = [digest(picture) for picture in value]
    return body


def flag(name: str) -> str:
    """A field as it is typed."""
    return f"--{name.replace('_', '-')}"


def digest(pixels: np.ndarray) -> str:
    """Size and hash of an image, in words."""
    return f"{pixels.shape[1]} x {pixels.shape[0]} pixels, sha256 {hashlib.sha256(pixels.tobytes()).hexdigest()[:16]}"


def _flags(form: json_form.Form, options: Options) -> dict[str, str]:
    """Paths in the JSON -> what was typed for them, with the file where one is named."""
    typed = {form.path(name): _typed(name, options.get(name)) for name in form.keys}
    for name in ("images", "colors"):
        items = options.get(name, ()) if name in form.keys else ()
        typed |= {form.path(f"{name}[{i}]"): _typed(name, item) for i, item in enumerate(items)}
    return typed | {form.path(f"settings.{name}"): flag(name) for name in SETTINGS}


def _typed(name: str, value: Any) -> str:
    return f"{flag(name)} {value}" if isinstance(value, pathlib.Path) else flag(name)


def _read_files(options: Options) -> tuple[dict[str, Any], list[Problem]]:
    """The files that options name, in base64; None, and a problem, for each that cannot be read."""
    files, problems = {}, []
    for name, value in options.items():
        paths = value if name == "images" else (value,)
        if not all(isinstance(path, pathlib.Path) for path in paths):
            continue
        read = [_read_file(path) for path in paths]
        files[name] = read if name == "images" else read[0]
        problems += [
            Problem(_typed(name, path), "no file that can be read", "a PNG or JPEG")
            for path, data in zip(paths, read, strict=True)
            if data is None
        ]
    return files, problems


def _read_file(path: pathlib.Path) -> str | None:
    try:
        return base64.b64encode(path.read_bytes()).decode("ascii")
    except OSError:
        return None


def read_text(path: pathlib.Path) -> str:
    """The text of a file, or of standard input.

    Raises:
        ValueError: there is no such file, or it is not UTF-8.
    """
    try:
        return sys.stdin.read() if path == STANDARD_INPUT else path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise ValueError(f"--request {path} is no file that can be read; it must be JSON in UTF-8") from None
