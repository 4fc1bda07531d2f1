"""Requests as the public JSON of Amazon Nova Canvas, and back.

    {"taskType": "INPAINTING",
     "inPaintingParams": {"image": "iVBOR..", "maskPrompt": "the dog", "text": "a cat"},
     "imageGenerationConfig": {"seed": 7, "numberOfImages": 2}}

Pictures are PNG or JPEG files in base64, without a `data:` prefix. A null counts as left out.
"""

import base64
import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import numpy as np

from nova_jax.tasks import checks, pictures
from nova_jax.tasks.color_guided import ColorGuided
from nova_jax.tasks.inpaint import Inpaint
from nova_jax.tasks.limits import CANVAS, Limits
from nova_jax.tasks.outpaint import Outpaint
from nova_jax.tasks.problems import InvalidRequest, Problem, refuse
from nova_jax.tasks.remove_background import RemoveBackground
from nova_jax.tasks.request import Request
from nova_jax.tasks.settings import ImageSettings
from nova_jax.tasks.text_to_image import TextToImage
from nova_jax.tasks.vary import Vary

TASK, CONFIG = "taskType", "imageGenerationConfig"
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
NOT_OFFERED = ("VIRTUAL_TRY_ON",)

Reader = Callable[[bytes, Limits], np.ndarray]


class Form(NamedTuple):
    """How one task is written: its class, its parameter object, and the key of each field in it."""

    request: type[Request]
    parameters: str
    keys: Mapping[str, str]

    @property
    def has_settings(self) -> bool:
        """Whether the request draws, and so reads `imageGenerationConfig`."""
        return "settings" in {field.name for field in dataclasses.fields(self.request)}

    @property
    def outer_keys(self) -> tuple[str, ...]:
        """The keys of the outermost object."""
        return (TASK, self.parameters, CONFIG) if self.has_settings else (TASK, self.parameters)

    def path(self, field: str) -> str:
        """The JSON path of a field as its request names it, such as `images[2]` or `settings.seed`."""
        if field.startswith("settings."):
            return f"{CONFIG}.{SETTINGS[field.removeprefix('settings.')]}"
        name, bracket, index = field.partition("[")
        return f"{self.parameters}.{self.keys[name]}{bracket}{index}"


FORMS = {
    "TEXT_IMAGE": Form(TextToImage, "textToImageParams", TEXTS | {"style": "style"} | CONTROL),
    "COLOR_GUIDED_GENERATION": Form(ColorGuided, "colorGuidedGenerationParams", PALETTE | TEXTS),
    "IMAGE_VARIATION": Form(Vary, "imageVariationParams", VARIED | TEXTS),
    "INPAINTING": Form(Inpaint, "inPaintingParams", MASKED),
    "OUTPAINTING": Form(Outpaint, "outPaintingParams", MASKED | {"mode": "outPaintingMode"}),
    "BACKGROUND_REMOVAL": Form(RemoveBackground, "backgroundRemovalParams", {"image": "image"}),
}
READERS: Mapping[str, Reader] = {  # of the fields that hold one picture
    "image": pictures.read_picture,
    "condition_image": pictures.read_picture,
    "reference_image": pictures.read_picture,
    "mask_image": pictures.read_mask,
}


def parse_request(source: Mapping[str, Any] | str, limits: Limits = CANVAS) -> Request:
    """Reads a request from its JSON, as text or already a dict.

    Returns:
        One of the classes of `FORMS`.

    Raises:
        InvalidRequest: with every problem of the request, its field named by the path in the JSON, for example
            `inPaintingParams.maskImage` or `imageVariationParams.images[2]`.
    """
    body = _load(source)
    form = _form_of(body)
    problems = _unknown_keys(body, "", form.outer_keys)
    fields, unread = _read_fields(body, form, limits)
    if form.has_settings:
        fields["settings"], wrong = _read_settings(body)
        problems += wrong
    problems += unread
    try:
        request = form.request(**fields, limits=limits)
    except InvalidRequest as error:
        found = [problem._replace(field=form.path(problem.field)) for problem in error.problems]
        told = {problem.field for problem in unread}  # a picture that cannot be read is not missing as well
        raise InvalidRequest(problems + [problem for problem in found if problem.field not in told]) from None
    refuse(problems)
    return request


def to_json(request: Request) -> dict[str, Any]:
    """Writes a request as its JSON, pictures as PNG; `parse_request` with the same limits gives it back exactly.

    Raises:
        ValueError: the public form does not know requests of this class.
    """
    task = next((task for task, form in FORMS.items() if form.request is type(request)), None)
    if task is None:
        raise ValueError(f"{type(request).__name__} has no public form; it must be one of {', '.join(FORMS)}")
    form = FORMS[task]
    body = {TASK: task, form.parameters: _write(request, form.keys)}
    settings = getattr(request, "settings", None)
    return body if settings is None else body | {CONFIG: _write(settings, SETTINGS)}


def _load(source: Mapping[str, Any] | str) -> Mapping[str, Any]:
    try:
        body = json.loads(source) if isinstance(source, str) else source
    except (ValueError, RecursionError) as error:
        raise InvalidRequest([Problem("request", f"not JSON ({error})", "one JSON object")]) from None
    if not isinstance(body, Mapping):
        raise InvalidRequest([Problem("request", checks.show(body), "one JSON object")])
    return body


def _form_of(body: Mapping[str, Any]) -> Form:
    task = body.get(TASK)
    if isinstance(task, str) and task in FORMS:
        return FORMS[task]
    given = f"{task}, which is not offered" if task in NOT_OFFERED else checks.show(task)
    raise InvalidRequest([Problem(TASK, given, f"one of {', '.join(FORMS)}")])


def _unknown_keys(values: Mapping[str, Any], prefix: str, allowed: Collection[str]) -> list[Problem]:
    return [
        Problem(f"{prefix}{key}", "not a key of this request", f"one of {', '.join(allowed)}")
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


def _read_fields(body: Mapping[str, Any], form: Form, limits: Limits) -> tuple[dict[str, Any], list[Problem]]:
    """The fields of the request: pictures decoded, and None for what is needed but missing, or cannot be read."""
    given, problems = _read_object(body, form.parameters, form.keys)
    needed = {field.name for field in dataclasses.fields(form.request) if field.default is dataclasses.MISSING}
    fields = {name: None for name in form.keys if name in needed} | given
    for name, read in READERS.items():
        if name in given:
            fields[name], found = _decode(given[name], form.path(name), read, limits)
            problems += found
    if isinstance(given.get("images"), (list, tuple)):
        read = pictures.read_picture
        decoded = [_decode(item, form.path(f"images[{i}]"), read, limits) for i, item in enumerate(given["images"])]
        fields["images"] = tuple(picture for picture, _ in decoded)
        problems += [problem for _, found in decoded for problem in found]
    return fields, problems


def _decode(value: Any, path: str, read: Reader, limits: Limits) -> tuple[np.ndarray | None, list[Problem]]:
    """A picture or mask from base64."""
    allowed = "a PNG or JPEG in base64, without a data: prefix"
    if not isinstance(value, str):
        return None, [Problem(path, checks.show(value), allowed)]
    try:
        return read(base64.b64decode(value, validate=True), limits), []
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
        return base64.b64encode(pictures.to_png(value)).decode("ascii")
    if isinstance(value, (tuple, list)):
        return [_encode(item) for item in value]
    return value
