"""Video requests on the command line: from prompts, options or a JSON file to MP4 files.

A video of one shot is one file. A film is a folder: `shot_0001.mp4` and so on, and all of them joined in `output.mp4`.
Frames go to the file as they are drawn.
"""

import collections
import dataclasses
import itertools
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from nova_jax import generation, media
from nova_jax.cli import images
from nova_jax.cli.images import Options, flag
from nova_jax.parallel import distributed
from nova_jax.tasks import (
    InvalidRequest,
    MultiShot,
    MultiShotAutomated,
    Problem,
    TextToVideo,
    VideoLimits,
    VideoRequest,
    checks,
    json_form,
    read_image,
)

TASKS = {"text-to-video": TextToVideo, "multi-shot": MultiShotAutomated}
OPTIONS = {"text-to-video": ("text", "image", "seed"), "multi-shot": ("text", "duration_seconds", "seed")}
SHOT, FILM = "shot_{:04d}.mp4", "output.mp4"
SHOTS = re.compile(r"shot_(\d{4,})\.mp4")


def draws_videos(trained: generation.TrainedRun) -> bool:
    """Whether a run's latents have more than one frame."""
    return trained.latent_shape[0] > 1


def read_requests(
    trained: generation.TrainedRun,
    prompts: Sequence[str],
    path: pathlib.Path | None,
    task: str | None,
    options: Options,
) -> list[VideoRequest]:
    """The requests of prompts, or the one of a JSON file or of a task's options, within the limits of the model.

    Raises:
        InvalidRequest: with every problem.
        ValueError: there is no such file, the task draws images, or the model cannot carry a request out.
    """
    limits = generation.videos.limits_of(trained)
    if prompts:
        first, count = options.get("seed", 0), options.get("count", 1)
        seeds = range(first, first + count)
        requests: list[Any] = [_prompt(prompt, seed, limits) for prompt in prompts for seed in seeds]
    elif path is not None:
        requests = [json_form.parse_request(images.read_text(path), limits)]
    elif task in TASKS:
        requests = [from_options(task, options, limits)]
    else:
        raise ValueError(f"--task {task} draws images, and this run draws videos: ask for {' or '.join(TASKS)}")
    for request in requests:
        generation.videos.check(trained, request)
    return requests


def _prompt(text: str, seed: int, limits: VideoLimits) -> TextToVideo:
    """The request of one prompt."""
    try:
        return TextToVideo(text=text, seed=seed, limits=limits)
    except InvalidRequest as error:
        typed = {"text": f"the prompt {checks.show(text)}", "seed": "--seed"}
        raise InvalidRequest([p._replace(field=typed.get(p.field, p.field)) for p in error.problems]) from None


def from_options(task: str, options: Options, limits: VideoLimits) -> VideoRequest:
    """The request that a task's options ask for; an image is a path.

    Raises:
        InvalidRequest: with every problem, each named by its option.
    """
    allowed = f"one of {', '.join(map(flag, OPTIONS[task]))}"
    problems = [Problem(flag(name), f"no option of {task}", allowed) for name in options if name not in OPTIONS[task]]
    fields = {name: options[name] for name in OPTIONS[task] if name in options}
    if path := fields.pop("image", None):
        try:
            fields["image"] = read_image(path, limits)
        except InvalidRequest as error:
            problems += [problem._replace(field=f"--image {path}") for problem in error.problems]
        except OSError:
            problems.append(Problem(f"--image {path}", "no file that can be read", "a PNG or JPEG"))
    needed = {field.name: None for field in dataclasses.fields(TASKS[task]) if field.default is dataclasses.MISSING}
    try:
        request = TASKS[task](**{**needed, **fields, "limits": limits})
    except InvalidRequest as error:
        problems += [problem._replace(field=flag(problem.field)) for problem in error.problems]
        raise InvalidRequest(problems) from None
    if problems:
        raise InvalidRequest(problems)
    return request


def check_output(requests: Sequence[VideoRequest], output: pathlib.Path | None, *, overwrite: bool = False) -> None:
    """Refuses a name that does not fit what is written, or that holds something already.

    Raises:
        ValueError: one name for several videos, no MP4 for one shot, no folder for a film, or a name that is taken.
    """
    if output is None:
        return
    if len(requests) > 1:
        raise ValueError(f"--output {output} is one name, and {len(requests)} videos are asked for: give --out FOLDER")
    is_film, is_mp4 = isinstance(requests[0], MultiShot), output.suffix.lower() == ".mp4"
    if is_film and is_mp4:
        raise ValueError(f"--output {output} must be a folder: a film is a file for each shot, and {FILM}")
    if not is_film and not is_mp4:
        raise ValueError(f"--output {output} must end in .mp4")
    if output.exists() and not overwrite and (not is_film or any(output.iterdir())):
        raise ValueError(f"--output {output} is there already: give another name, or --overwrite to replace it")


def draw(
    trained: generation.TrainedRun,
    request: VideoRequest,
    settings: generation.SamplingSettings,
    *,
    run: pathlib.Path,
    out: pathlib.Path,
    output: pathlib.Path | None = None,
    upscale: int = 1,
    overwrite: bool = False,
) -> list[media.Written]:
    """Draws a request into MP4 files, which know their prompt, seed and request. The main process alone writes.

    Args:
        trained: the run.
        request: what to draw.
        settings: how.
        run: the run's folder, for the metadata.
        out: the folder for a video, or for the folder of a film, that is named after its task, text and seed.
        output: the file of a video, or the folder of a film, in its place.
        upscale: each pixel becomes a square of so many.
        overwrite: whether to replace a video, or the files of a film, of that name.
    """
    sampling = json.dumps(dataclasses.asdict(settings))
    body = json.dumps(describe(request))
    said = {"request": body, "run": str(run), "step": str(trained.step), "sampling": sampling}
    is_film = isinstance(request, MultiShot)
    name = generation.files.name(
        _text(request), request.seed, kind="multi-shot" if is_film else "text-to-video", facts=said
    )
    frames = _frames(generation.videos.draw_stream(trained, request, settings), upscale)
    if not distributed.is_main():
        collections.deque(frames, maxlen=0)  # samples with the others
        return []
    said = {"seed": str(request.seed)} | said
    if is_film:
        with generation.files.folder(output or out / name, overwrite=overwrite or output is not None) as folder:
            return _write_film(folder, request, frames, said)
    return [_write_video(output or out / f"{name}.mp4", request, frames, said, overwrite=overwrite)]


def _write_video(
    place: pathlib.Path, request: VideoRequest, frames: Iterator[Any], said: Mapping[str, str], *, overwrite: bool
) -> media.Written:
    """Writes the one shot of a request."""
    written: list[media.Written] = []
    told = {"prompt": request.storyboard[0].text or "", **said}
    path = generation.files.save(
        place, lambda path: written.append(media.write_mp4(path, frames, request.fps, told)), overwrite=overwrite
    )
    return written[0]._replace(path=path)


def _write_film(
    folder: pathlib.Path, request: VideoRequest, frames: Iterator[Any], said: Mapping[str, str]
) -> list[media.Written]:
    """Writes each shot, and all of them joined; removes the further shots of a longer film that was there."""
    shots = []
    for number, shot in enumerate(request.storyboard):
        told = {"prompt": shot.text or "", "shot": str(number + 1), **said}
        kept = itertools.islice(frames, request.limits.frames_kept)
        shots.append(media.write_mp4(folder / SHOT.format(number + 1), kept, request.fps, told))
    told = {"prompt": _text(request), **said}
    film = media.join_mp4([shot.path for shot in shots], folder / FILM, told)
    for path in folder.iterdir():
        if (found := SHOTS.fullmatch(path.name)) and int(found[1]) > len(shots):
            path.unlink()
    return [*shots, film]


def describe(request: VideoRequest) -> dict[str, Any]:
    """The public form of a request, with size and digest of each image in place of the image."""
    body = json_form.to_json(request)
    parameters = body[json_form.VIDEO_FORMS[body[json_form.TASK]].parameters]
    shots = parameters.get("shots", [])
    sources = [*parameters.get("images", []), *(shot["image"] for shot in shots if "image" in shot)]
    pictures = [shot.image for shot in request.storyboard if shot.image is not None]
    for source, picture in zip(sources, pictures, strict=True):
        source["source"] = {"bytes": images.digest(picture)}
    return body


def _frames(stream: Iterator[UInt8[np.ndarray, "_ h w 3"]], upscale: int) -> Iterator[UInt8[np.ndarray, "1 h w 3"]]:
    """The frames one by one, enlarged by repeated pixels."""
    for chunk in stream:
        for frame in chunk:
            yield frame.repeat(upscale, axis=0).repeat(upscale, axis=1)[None]


def _text(request: VideoRequest) -> str:
    """All that a request says."""
    return getattr(request, "text", None) or " ".join(shot.text or "" for shot in request.storyboard)
