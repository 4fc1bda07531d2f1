"""Requests as the public JSON of Amazon Nova Canvas and Amazon Nova Reel, and back.

    {"taskType": "INPAINTING",
     "inPaintingParams": {"image": "iVBOR..", "maskPrompt": "the dog", "text": "a cat"},
     "imageGenerationConfig": {"seed": 7, "numberOfImages": 2}}

    {"taskType": "TEXT_VIDEO",
     "textToVideoParams": {"text": "a dog runs", "images": [{"format": "png", "source": {"bytes": "iVBOR.."}}]},
     "videoGenerationConfig": {"fps": 24, "durationSeconds": 6, "dimension": "1280x720", "seed": 7}}

Images are PNG or JPEG files in base64, in one line or several, without a `data:` prefix. A null counts as left out.
"""

import base64
import dataclasses
import json
import string
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from nova_jax.tasks import checks, image_inputs
from nova_jax.tasks.color_guided import ColorGuided
from nova_jax.tasks.inpaint import Inpaint
from nova_jax.tasks.limits import CANVAS, REEL, SHOT_TEXT_LENGTH, AnyLimits, Limits, VideoLimits
from nova_jax.tasks.multi_shot import MultiShotAutomated, MultiShotManual
from nova_jax.tasks.outpaint import Outpaint
from nova_jax.tasks.problems import InvalidRequest, Problem, refuse
from nova_jax.tasks.remove_background import RemoveBackground
from nova_jax.tasks.request import Request, ShotRequest, VideoRequest
from nova_jax.tasks.settings import ImageSettings
from nova_jax.tasks.text_to_image import TextToImage
from nova_jax.tasks.text_to_video import TextToVideo
from nova_jax.tasks.vary import Vary

TASK, CONFIG, VIDEO_CONFIG = "taskType", "imageGenerationConfig", "videoGenerationConfig"
TEXTS = {"text": "text", "negative_text": "negativeText"}
MASKED = {"image": "image", "mask_prompt": "maskPrompt", "mask_image": "maskImage"} | TEXTS
CONTROL = {"condition_image": "conditionImage", "control_mode": "controlMode", "control_strength": "controlStrength"}
PALETTE = {"colors": "colors", "reference_image": "referenceImage"}
VARIED = {"images": "images", "similarity_strength": "similarityStrength"}
SETTINGS = {
    "width": "width",
    "height": "height",
    "quality": "quality",
    "cfg_scale": "cfgScale",
    "seed": "seed",
    "count": "numberOfImages",
}
VIDEO = {"fps": "fps", "dimension": "dimension", "seed": "seed"}
TIMED_VIDEO = {"duration_seconds": "durationSeconds"} | VIDEO
NOT_OFFERED = ("VIRTUAL_TRY_ON",)

BYTE_ORDER_MARK = "\ufeff"  # some editors begin a file with it
NO_SPACE = str.maketrans("", "", string.whitespace)  # base64 comes in lines of 64 or 76 letters as well as in one
Reader = Callable[[bytes, Any], np.ndarray]  # (file, limits) -> pixels


class Form(NamedTuple):
    """How one task is written: its class, its parameter object, and the key of each field in it.

    `settings` are the keys of its `config` object, by the field: of `ImageSettings`, or of the video request itself.
    """

    request: type[Request]
    parameters: str
    keys: Mapping[str, str]
    config: str = CONFIG
    settings: Mapping[str, str] = SETTINGS

    @property
    def is_video(self) -> bool:
        """Whether the answer is a video."""
        return self.config == VIDEO_CONFIG

    @property
    def has_settings(self) -> bool:
        """Whether the request reads its config object."""
        return bool(self.settings)

    @property
    def outer_keys(self) -> tuple[str, ...]:
        """The keys of the outermost object."""
        return (TASK, self.parameters, self.config) if self.has_settings else (TASK, self.parameters)

    def path(self, field: str) -> str:
        """The JSON path of a field as its request names it, such as `images[2]`, `shots[0].text` or `settings.seed`."""
        if field.startswith("settings."):
            return f"{CONFIG}.{SETTINGS[field.removeprefix('settings.')]}"
        if self.is_video and field in self.settings:
            return f"{self.config}.{self.settings[field]}"
        name, bracket, index = field.partition("[")
        return f"{self.parameters}.{self.keys[name]}{bracket}{index}"


FORMS = {
    "TEXT_IMAGE": Form(TextToImage, "textToImageParams", TEXTS | {"style": "style"} | CONTROL),
    "COLOR_GUIDED_GENERATION": Form(ColorGuided, "colorGuidedGenerationParams", PALETTE | TEXTS),
    "IMAGE_VARIATION": Form(Vary, "imageVariationParams", VARIED | TEXTS),
    "INPAINTING": Form(Inpaint, "inPaintingParams", MASKED),
    "OUTPAINTING": Form(Outpaint, "outPaintingParams", MASKED | {"mode": "outPaintingMode"}),
    "BACKGROUND_REMOVAL": Form(RemoveBackground, "backgroundRemovalParams", {"image": "image"}, settings={}),
}
VIDEO_FORMS = {
    "TEXT_VIDEO": Form(
        TextToVideo, "textToVideoParams", {"text": "text", "image": "images"}, VIDEO_CONFIG, TIMED_VIDEO
    ),
    "MULTI_SHOT_AUTOMATED": Form(
        MultiShotAutomated, "multiShotAutomatedParams", {"text": "text"}, VIDEO_CONFIG, TIMED_VIDEO
    ),
    "MULTI_SHOT_MANUAL": Form(MultiShotManual, "multiShotManualParams", {"shots": "shots"}, VIDEO_CONFIG, VIDEO),
}
READERS: Mapping[str, Reader] = {  # of the fields that hold one image
    "image": image_inputs.read_image,
    "condition_image": image_inputs.read_image,
    "reference_image": image_inputs.read_image,
    "mask_image": image_inputs.read_mask,
}


def parse_request(source: Mapping[str, Any] | str, limits: AnyLimits | None = None) -> Request:
    """Reads a request from its JSON, as text or already a dict.

    Args:
        source: the JSON.
        limits: of the model, which then offers the tasks of images or those of videos; None: either kind, within
            `CANVAS` or `REEL`.

    Returns:
        One of the classes of `FORMS` or `VIDEO_FORMS`.

    Raises:
        InvalidRequest: with every problem of the request, its field named by the path in the JSON, for example
            `inPaintingParams.maskImage` or `multiShotManualParams.shots[2].text`.
    """
    body = _load(source)
    form = _form_of(body, offered(limits))
    limits = limits or (REEL if form.is_video else CANVAS)
    problems = _unknown_keys(body, "", form.outer_keys)
    fields, unread = _read_fields(body, form, limits)
    if form.is_video:
        config, wrong = _read_video_config(body, form, limits)
        fields, unread = fields | config, unread + wrong
    elif form.has_settings:
        fields["settings"], wrong = _read_settings(body)
        problems += wrong
    problems += unread
    try:
        request = form.request(**fields, limits=limits)  # pyright: ignore[reportCallIssue]
    except InvalidRequest as error:
        found = [problem._replace(field=form.path(problem.field)) for problem in error.problems]
        told = {problem.field for problem in unread}  # an image that cannot be read is not missing as well
        raise InvalidRequest(problems + [problem for problem in found if problem.field not in told]) from None
    refuse(problems)
    return request


def to_json(request: Request) -> dict[str, Any]:
    """Writes a request as its JSON, images as PNG; `parse_request` with the same limits gives it back exactly.

    A shot without text, which the public form does not know, gets the text that it goes on with.

    Raises:
        ValueError: the public form does not know requests of this class.
    """
    forms = offered(None)
    task = next((task for task, form in forms.items() if form.request is type(request)), None)
    if task is None:
        raise ValueError(f"{type(request).__name__} has no public form; it must be one of {', '.join(forms)}")
    form = forms[task]
    if isinstance(request, VideoRequest):
        config = _write(request, form.settings) | {"dimension": _dimension(request.limits)}
        return {TASK: task, form.parameters: _write_video(request, form), form.config: config}
    body = {TASK: task, form.parameters: _write(request, form.keys)}
    settings = getattr(request, "settings", None)
    return body if settings is None else body | {CONFIG: _write(settings, SETTINGS)}


def offered(limits: AnyLimits | None) -> dict[str, Form]:
    """The tasks of a model with these limits; None: all."""
    images = {} if isinstance(limits, VideoLimits) else FORMS
    return images | ({} if isinstance(limits, Limits) else VIDEO_FORMS)


def _load(source: Mapping[str, Any] | str) -> Mapping[str, Any]:
    try:
        body = json.loads(source.removeprefix(BYTE_ORDER_MARK)) if isinstance(source, str) else source
    except (ValueError, RecursionError) as error:
        raise InvalidRequest([Problem("request", f"not JSON ({error})", "one JSON object")]) from None
    if not isinstance(body, Mapping):
        raise InvalidRequest([Problem("request", checks.show(body), "one JSON object")])
    return body


def _form_of(body: Mapping[str, Any], forms: Mapping[str, Form]) -> Form:
    task = body.get(TASK)
    if isinstance(task, str) and task in forms:
        return forms[task]
    is_known = isinstance(task, str) and task in (*NOT_OFFERED, *offered(None))
    given = f"{task}, which is not offered" if is_known else checks.show(task)
    raise InvalidRequest([Problem(TASK, given, f"one of {', '.join(forms)}")])


def _unknown_keys(values: Mapping[str, Any], prefix: str, allowed: Collection[str]) -> list[Problem]:
    return [
        Problem(f"{prefix}{checks.show_key(key)}", "not a key of this request", f"one of {', '.join(allowed)}")
        for key in values
        if key not in allowed
    ]


def _read_object(body: Mapping[str, Any], name: str, keys: Mapping[str, str]) -> tuple[dict[str, Any], list[Problem]]:
    """The values of an inner object by the fields that they are for; an object left out is empty."""
    values = {} if body.get(name) is None else body[name]
    if not isinstance(values, Mapping):
        return {}, [Problem(name, checks.show(values), f"an object with keys from {', '.join(keys.values())}")]
    given = {field: values[key] for field, key in keys.items() if values.get(key) is not None}
    return given, _unknown_keys(values, f"{name}.", keys.values())


def _read_settings(body: Mapping[str, Any]) -> tuple[ImageSettings, list[Problem]]:
    """The settings, with the default in place of each value that is wrong by itself."""
    given, problems = _read_object(body, CONFIG, SETTINGS)
    try:
        return ImageSettings(**given), problems
    except InvalidRequest as error:
        wrong = {problem.field for problem in error.problems}
        problems += [problem._replace(field=f"{CONFIG}.{SETTINGS[problem.field]}") for problem in error.problems]
        return ImageSettings(**{field: value for field, value in given.items() if field not in wrong}), problems


def _read_video_config(body: Mapping[str, Any], form: Form, limits: AnyLimits) -> tuple[dict[str, Any], list[Problem]]:
    """The fields of a video request that lie in its config."""
    given, problems = _read_object(body, form.config, form.settings)
    assert isinstance(limits, VideoLimits)
    if given.pop("dimension", _dimension(limits)) != _dimension(limits):
        wrong = checks.show(body[form.config]["dimension"])
        problems.append(Problem(form.path("dimension"), wrong, f"'{_dimension(limits)}', width and height"))
    return _needed(form, form.settings) | given, problems


def _dimension(limits: VideoLimits) -> str:
    return f"{limits.width}x{limits.height}"


def _needed(form: Form, names: Collection[str]) -> dict[str, Any]:
    """None for each of the fields that has no default."""
    fields = dataclasses.fields(form.request)
    return {field.name: None for field in fields if field.name in names and field.default is dataclasses.MISSING}


def _read_fields(body: Mapping[str, Any], form: Form, limits: AnyLimits) -> tuple[dict[str, Any], list[Problem]]:
    """The fields of the request: images decoded, and None for what is needed but missing, or cannot be read."""
    given, problems = _read_object(body, form.parameters, form.keys)
    fields = _needed(form, form.keys) | given
    if form.is_video:
        found = _read_shots(fields, form, limits)
        return fields, problems + found
    for name, read in READERS.items():
        if name in given:
            fields[name], found = _decode(given[name], form.path(name), read, limits)
            problems += found
    if isinstance(given.get("images"), (list, tuple)):
        read = image_inputs.read_image
        decoded = [_decode(item, form.path(f"images[{i}]"), read, limits) for i, item in enumerate(given["images"])]
        fields["images"] = tuple(image for image, _ in decoded)
        problems += [problem for _, found in decoded for problem in found]
    return fields, problems


def _read_shots(fields: dict[str, Any], form: Form, limits: AnyLimits) -> list[Problem]:
    """Decodes the images of a video's fields in place, and says what is wrong with them."""
    problems = []
    if "image" in fields:
        path, value = form.path("image"), fields.pop("image")
        if not isinstance(value, (list, tuple)) or len(value) > 1:
            return [Problem(path, checks.show(value), "a list of one image, or left out")]
        if value:
            fields["image"], problems = _read_source(value[0], f"{path}[0]", limits)
    if isinstance(fields.get("shots"), (list, tuple)):
        read = [_read_shot(value, form.path(f"shots[{i}]"), limits) for i, value in enumerate(fields["shots"])]
        fields["shots"] = tuple(shot for shot, _ in read)
        problems += [problem for _, found in read for problem in found]
    return problems


def _read_shot(value: Any, path: str, limits: AnyLimits) -> tuple[Any, list[Problem]]:
    """One shot of a list; what is no object stays as it is."""
    if not isinstance(value, Mapping):
        return value, [Problem(path, checks.show(value), "an object with text and perhaps image")]
    problems = _unknown_keys(value, f"{path}.", ShotRequest._fields)
    if value.get("text") is None:  # the public form has no shots without text
        problems += checks.text(f"{path}.text", None, SHOT_TEXT_LENGTH)
    image = None
    if value.get("image") is not None:
        image, found = _read_source(value["image"], f"{path}.image", limits)
        problems += found
    return ShotRequest(value.get("text"), image), problems


def _read_source(value: Any, path: str, limits: AnyLimits) -> tuple[np.ndarray | None, list[Problem]]:
    """An image as Reel is given it: its format, and its bytes in base64."""
    if not isinstance(value, Mapping):
        return None, [Problem(path, checks.show(value), 'an object {"format": .., "source": {"bytes": ..}}')]
    problems = _unknown_keys(value, f"{path}.", ("format", "source"))
    problems += checks.choice(f"{path}.format", value.get("format"), ("png", "jpeg"))
    source = value.get("source")
    if not isinstance(source, Mapping) or source.get("bytes") is None:
        allowed = "an object with the image in base64 as bytes (files in S3 are not read)"
        return None, [*problems, Problem(f"{path}.source", checks.show(source), allowed)]
    problems += _unknown_keys(source, f"{path}.source.", ("bytes",))
    image, found = _decode(source["bytes"], f"{path}.source.bytes", image_inputs.read_image, limits)
    return image, problems + found


def _decode(value: Any, path: str, read: Reader, limits: AnyLimits) -> tuple[np.ndarray | None, list[Problem]]:
    """An image or mask from base64, which may be broken into lines."""
    allowed = "a PNG or JPEG in base64, without a data: prefix"
    if not isinstance(value, str):
        return None, [Problem(path, checks.show(value), allowed)]
    try:
        return read(base64.b64decode(value.translate(NO_SPACE), validate=True), limits), []
    except InvalidRequest as error:
        return None, [problem._replace(field=path) for problem in error.problems]
    except ValueError as error:
        return None, [Problem(path, f"not base64 ({error})", allowed)]


def _write(values: Any, keys: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a dataclass by their keys, without those that are None."""
    given = {key: getattr(values, field) for field, key in keys.items()}
    return {key: _encode(value) for key, value in given.items() if value is not None}


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return base64.b64encode(image_inputs.to_png(value)).decode("ascii")
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    return value


def _write_video(request: VideoRequest, form: Form) -> dict[str, Any]:
    """The parameters of a video request."""
    shots = [
        {"text": shot.text} | ({} if shot.image is None else {"image": _write_source(shot.image)})
        for shot in request.storyboard
    ]
    if "shots" in form.keys:
        return {"shots": shots}
    if "image" in form.keys and "image" in shots[0]:
        return {"text": shots[0]["text"], "images": [shots[0]["image"]]}
    return _write(request, {"text": "text"})


def _write_source(image: np.ndarray) -> dict[str, Any]:
    return {"format": "png", "source": {"bytes": _encode(image)}}
