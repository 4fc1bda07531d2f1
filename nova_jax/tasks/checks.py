"""The checks that requests share: each takes a field's name and its value of any type, and returns what is wrong.

Types are checked too, since a request may come from JSON. None counts as missing; where a field may be left out,
`is_optional` lets None pass.
"""

import re
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from nova_jax.tasks.limits import TEXT_LENGTH, AnyLimits, Range
from nova_jax.tasks.problems import Problem

Check = Callable[[str, Any], list[Problem]]  # (field, value) -> what is wrong

MAX_KEY, MAX_VALUE = 60, 200  # characters of a key and of a value in a sentence
HEX_COLOR = re.compile("#[0-9A-Fa-f]{6}")
PURE = "pure black (0) and pure white (255) in every pixel; PNG keeps them, JPEG mixes them"


def show(value: Any) -> str:
    """A value of any type, short enough for a sentence."""
    if value is None:
        return "missing"
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    text = reprlib.repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}.."


def show_key(key: Any) -> str:
    """A key as it stands, or quoted and cut where it is no short text that can be printed."""
    is_plain = isinstance(key, str) and key.isprintable() and 0 < len(key) <= MAX_KEY
    return key if is_plain else reprlib.repr(key)


def is_whole(value: Any) -> bool:
    """Whether it is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def whole(field: str, value: Any, bounds: Range) -> list[Problem]:
    """An int within bounds."""
    if is_whole(value) and bounds.low <= value <= bounds.high:
        return []
    return [Problem(field, show(value), f"a whole number {bounds}")]


def number(field: str, value: Any, bounds: Range) -> list[Problem]:
    """An int or float within bounds; NaN is not."""
    if (is_whole(value) or isinstance(value, float)) and bounds.low <= value <= bounds.high:
        return []
    return [Problem(field, show(value), f"a number {bounds}")]


def choice(field: str, value: Any, options: tuple[str, ...], *, is_optional: bool = False) -> list[Problem]:
    """One of a few names."""
    if (is_optional and value is None) or (isinstance(value, str) and value in options):
        return []
    return [Problem(field, show(value), f"one of {', '.join(options)}")]


def text(field: str, value: Any, bounds: Range = TEXT_LENGTH, *, is_optional: bool = False) -> list[Problem]:
    """A text of a length within bounds that UTF-8 can encode."""
    if is_optional and value is None:
        return []
    allowed = f"a text of {bounds.low:,} to {bounds.high:,} characters"
    if not isinstance(value, str):
        return [Problem(field, show(value), allowed)]
    if not bounds.low <= len(value) <= bounds.high:
        return [Problem(field, f"{len(value):,} characters long", allowed)]
    if not is_unicode(value):
        return [Problem(field, "a text with half a surrogate pair", "Unicode that UTF-8 can encode")]
    return []


def is_unicode(value: str) -> bool:
    """Whether UTF-8 can encode a text: JSON may give half a surrogate pair, and a shell bytes that are no text."""
    return not any("\ud800" <= character <= "\udfff" for character in value)


def items(field: str, value: Any, bounds: Range, kind: str, check: Check) -> list[Problem]:
    """A tuple or list whose length lies within bounds, and whose items pass a check; `kind` names what it holds."""
    allowed = f"{bounds.low} to {bounds.high} {kind} in a tuple or list"
    if not isinstance(value, (tuple, list)):
        return [Problem(field, show(value), allowed)]
    problems = [problem for i, item in enumerate(value) for problem in check(f"{field}[{i}]", item)]
    if not bounds.low <= len(value) <= bounds.high:
        problems.append(Problem(field, f"{len(value)} {kind}", allowed))
    return problems


def color(field: str, value: Any) -> list[Problem]:
    """A colour as #RRGGBB, hexadecimal digits of either case."""
    if isinstance(value, str) and HEX_COLOR.fullmatch(value):
        return []
    return [Problem(field, show(value), "a colour as #RRGGBB")]


def size(field: str, width: int, height: int, limits: AnyLimits) -> list[Problem]:
    """The size of an image that is read: any sides within limits."""
    refusals = limits.refusals_of_sides(width, height) + limits.refusals_of_shape(width, height)
    return [Problem(field, f"{width} x {height} pixels", allowed) for allowed in refusals]


def image(field: str, value: Any, limits: AnyLimits, *, is_optional: bool = False) -> list[Problem]:
    """An image that is read: uint8 (h, w, 3), its size within limits."""
    if is_optional and value is None:
        return []
    if value is None:
        return [Problem(field, show(value), "an image")]
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3:
        return [Problem(field, show(value), "an array of uint8 and shape (h, w, 3), as read_image makes it")]
    return size(field, value.shape[1], value.shape[0], limits)


def purity(field: str, pixels: np.ndarray) -> list[Problem]:
    """A mask of uint8 (h, w) or (h, w, c): every pixel black or white."""
    channels = pixels.reshape(*pixels.shape[:2], -1)
    is_impure = ~((channels == 0).all(axis=-1) | (channels == 255).all(axis=-1))
    if not is_impure.any():
        return []
    row, column = np.argwhere(is_impure)[0]
    first = f"the first, {channels[row, column].tolist()}, at row {row} and column {column}"
    return [Problem(field, f"neither black nor white in {is_impure.sum():,} of its pixels ({first})", PURE)]


def mask(field: str, value: Any, image: Any) -> list[Problem]:
    """A mask: uint8 (h, w) of 0 and 255, of the size of its image (which may itself be at fault)."""
    if not isinstance(value, np.ndarray) or value.dtype != np.uint8 or value.ndim != 2:
        return [Problem(field, show(value), "an array of uint8 and shape (h, w), as read_mask makes it")]
    problems = purity(field, value)
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[:2] != value.shape:
        height, width = image.shape[:2]
        given = f"{value.shape[1]} x {value.shape[0]} pixels"
        problems.append(Problem(field, given, f"{width} x {height} pixels, the size of its image"))
    return problems


def one_mask(mask_prompt: Any, mask_image: Any, image: Any) -> list[Problem]:
    """Exactly one of a prompt and an image that say where to edit, and that one in order."""
    if mask_prompt is None and mask_image is None:
        return [Problem("mask_image", "missing", "given, or a mask prompt in its place")]
    problems = text("mask_prompt", mask_prompt, is_optional=True)
    if mask_image is not None:
        problems += mask("mask_image", mask_image, image)
    if mask_prompt is not None and mask_image is not None:
        problems.append(Problem("mask_image", "given beside a mask prompt", "the only one of the two, or left out"))
    return problems
