"""Configuration without a configuration language: frozen dataclasses, changed by dotted paths, written as JSON.

A component is its own config, so `override(CONFIG, ["model.dit.depth=8"])` reaches into Linen modules as well. Swapping
one component for another is done in Python; the command line changes values.
"""

import ast
import dataclasses
import difflib
import importlib
import os
import pathlib
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

CLASS_KEY = "_class_name"  # "package.module:Class" in the JSON form
DTYPE_KEY = "_dtype"
MOVED = {  # names in the configs of earlier versions -> today's
    "nova_jax.models.text:ByteTextEncoder": "nova_jax.models.text.byte_groups:ByteTextEncoder",
    "nova_jax.models.t5:T5Encoder": "nova_jax.models.text.t5:T5Encoder",
    "nova_jax.experiment:TrainConfig": "nova_jax.runs.config:TrainConfig",
    "nova_jax.experiment:Preview": "nova_jax.runs.config:Preview",
    "nova_jax.inference:SamplingSettings": "nova_jax.generation.settings:SamplingSettings",
    "nova_jax.distillation.semigroup:Progressive": "nova_jax.distillation.progressive:Progressive",
    "nova_jax.distillation.semigroup:Shortcut": "nova_jax.distillation.shortcut:Shortcut",
    "data_pipelines.streams:Pixels": "data_pipelines.datasets:Pixels",
    "data_pipelines.streams:CaptionedLatents": "data_pipelines.datasets:CaptionedLatents",
    "data_pipelines.canvas:CanvasLatents": "data_pipelines.conditioned:ConditionedLatents",
    "data_pipelines.canvas:InMemory": "data_pipelines.sources.memory:InMemory",
    "data_pipelines.cache:LatentCache": "data_pipelines.encoding:LatentCache",
    "data_pipelines.cutouts:Cutouts": "data_pipelines.sources.cutouts:Cutouts",
    "data_pipelines.cutouts:CutoutPictures": "data_pipelines.sources.cutouts:CutoutImages",
    "data_pipelines.sources.cutouts:CutoutPictures": "data_pipelines.sources.cutouts:CutoutImages",
    "data_pipelines.sources.held:Held": "data_pipelines.sources.memory:InMemory",
    "data_pipelines.scenes.canvas:CanvasScenes": "data_pipelines.scenes.editing.source:CanvasScenes",
    "data_pipelines.scenes.canvas:CanvasPictures": "data_pipelines.scenes.editing.source:CanvasPictures",
    "data_pipelines.scenes.reel_source:Reels": "data_pipelines.scenes.video.source:Reels",
    "data_pipelines.scenes.reel_world:ReelWorld": "data_pipelines.scenes.video.world:ReelWorld",
}
LINEN_FIELDS = ("parent", "name")  # bookkeeping of flax.linen, never part of a config
PROSE = ("prompts", "text", "negative_text", "mask_prompt")  # fields whose `~` is a sign like any other


T = TypeVar("T")


class ConfigError(ValueError):
    """A path that does not exist, a value of the wrong type, or a class that may not be loaded."""


class NotInstalled(ConfigError):
    """A class of a package that is not installed here."""


def fields_of(node: Any) -> list[str]:
    """The names that can be set on a dataclass or Linen module."""
    return [f.name for f in _fields(type(node))]


def _fields(cls: Any) -> list[dataclasses.Field]:
    is_linen = any(base.__module__.startswith("flax.linen") for base in cls.__mro__)
    skip = LINEN_FIELDS if is_linen else ()
    return [f for f in dataclasses.fields(cls) if f.init and f.name not in skip]


def expand_home(value: T) -> T:
    """A config, its JSON form or a part of it, where a `~` that starts a text or path is the user's home folder.

    Whatever a config or the command line holds passes through here once: fields of any name may be paths, `PROSE` not.
    """
    found: Any = value
    if isinstance(value, str):
        found = os.path.expanduser(value)
    elif isinstance(value, pathlib.Path):
        found = value.expanduser()
    elif type(value) in (tuple, list):
        found = type(found)(map(expand_home, found))
    elif isinstance(value, dict):
        found = {key: item if key in PROSE else expand_home(item) for key, item in value.items()}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {name: getattr(value, name) for name in fields_of(value)}
        expanded = expand_home(fields)
        changed = {name: new for name, new in expanded.items() if new is not fields[name] and new != fields[name]}
        found = dataclasses.replace(value, **changed) if changed else value
    return found


def override(config: T, assignments: Sequence[str]) -> T:
    """Applies `dotted.path=value` assignments to nested frozen dataclasses, Linen modules included.

    Values are Python literals; bare words are strings, `a,b` a tuple of them where one is wanted; `true`, `false`,
    `none` are understood in any case; `~` is the user's home folder (`expand_home`). All take effect together, so
    fields that only fit each other may come in any order; a path given twice has its last value, or all of them where
    the field takes one text or several (a shell makes many arguments of `data.source.paths=a-{0..9}.tar`).

    Raises:
        ConfigError: the assignment has no `=`, the field does not exist (its siblings are listed) or the type is wrong.
    """
    changes: dict[str, Any] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} is not an override: write path=value, for example steps=1000")
        *parents, last = path.strip().split(".")
        node = changes
        for key in parents:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{path}: {key} is given as a value as well; give one or the other")
        earlier = node.get(last, ())
        if isinstance(earlier, dict):
            raise ConfigError(f"{path}: its field {next(iter(earlier))} is given as well; give one or the other")
        node[last] = (*earlier, text.strip())
    return expand_home(_replace(config, changes, ""))


def _replace(node: Any, changes: Mapping[str, Any], prefix: str) -> Any:
    """A copy of `node` with texts parsed into its fields, and dicts of them into the fields of its fields."""
    if not dataclasses.is_dataclass(node) or isinstance(node, type):
        raise ConfigError(f"{prefix}{next(iter(changes))}: {type(node).__name__} value {node!r} has no fields to set")
    names, new = fields_of(node), {}
    for key, change in changes.items():
        path = prefix + key
        if key not in names:
            close = difflib.get_close_matches(key, names, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(f"{path}: {type(node).__name__} has no field {key!r}; it has {', '.join(names)}.{hint}")
        old = getattr(node, key)
        if isinstance(change, tuple):
            text = _last_or_all(change, _annotation(node, key))
            new[key] = None if _is_emptied(node, key, text) else _parse(text, old, _annotation(node, key), path)
        else:
            new[key] = _replace(old, change, path + ".")
    try:
        return dataclasses.replace(node, **new)
    except (ValueError, TypeError) as error:
        given = ", ".join(f"{prefix}{key}={texts[-1]}" for key, texts in changes.items() if isinstance(texts, tuple))
        raise ConfigError(f"{given or prefix.rstrip('.')}: {error}") from error


def _last_or_all(texts: tuple[str, ...], annotation: Any) -> str:
    """The value of a path given several times."""
    takes_several = {str, tuple[str, ...]} <= set(_allowed_types(annotation))
    return ",".join(dict.fromkeys(texts)) if takes_several else texts[-1]


def _is_emptied(node: Any, name: str, text: str) -> bool:
    """Whether a text is `none`, and the field may hold nothing: its annotation or its default says so."""
    is_default = any(field.name == name and field.default is None for field in _fields(type(node)))
    return text.lower() == "none" and (is_default or type(None) in _allowed_types(_annotation(node, name)))


def _annotation(node: Any, name: str) -> Any:
    return typing.get_type_hints(type(node)).get(name, Any)


def _parse(text: str, old: Any, annotation: Any, path: str) -> Any:
    if dataclasses.is_dataclass(old):
        raise ConfigError(f"{path} is a {type(old).__name__}; set one of its fields: {', '.join(fields_of(old))}")
    if _is_dtype(old):
        try:
            return jnp.dtype(text).type
        except TypeError:
            raise ConfigError(f"{path}: expected a dtype such as float32 or bfloat16, got {text!r}") from None
    value = _literal(text)
    allowed = _allowed_types(annotation) or (() if old is None else (type(old),))
    # A value of a kind that is allowed stays of it: 5 is an int where fractions are allowed too.
    for kind in sorted(allowed, key=lambda kind: type(value) is not (typing.get_origin(kind) or kind)):
        ok, converted = _convert(value, text, kind)
        if ok:
            return converted
    if not allowed:
        return value
    expected = " or ".join(_type_name(kind) for kind in allowed)
    raise ConfigError(f"{path}: expected {expected}, got {text!r}")


def _literal(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _allowed_types(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of an annotation; empty when it allows anything."""
    if annotation is Any or isinstance(annotation, (str, typing.TypeVar)):
        return ()
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [part for option in typing.get_args(annotation) for part in _allowed_types(option) or (Any,)]
        return () if Any in parts else tuple(parts)
    return (annotation,)


def _convert(value: Any, text: str, kind: Any) -> tuple[bool, Any]:
    """Whether a parsed value fits one type, and the value as that type."""
    origin = typing.get_origin(kind)
    if origin is typing.Literal:
        options = typing.get_args(kind)
        return (True, text) if text in options else (value in options, value)
    if kind is type(None):
        return value is None, None
    if kind is float and type(value) is int:
        return True, float(value)
    if kind is str:
        return value is not None, value if isinstance(value, str) else text
    if isinstance(kind, type) and issubclass(kind, pathlib.PurePath):
        return value is not None, pathlib.Path(value if isinstance(value, str) else text)
    if kind is tuple or origin in (tuple, Sequence):
        if isinstance(value, str) and typing.get_args(kind)[:1] == (str,):  # bare words
            value = tuple(word.strip() for word in value.split(",") if word.strip())
        return isinstance(value, (tuple, list)), tuple(value) if isinstance(value, (tuple, list)) else value
    return isinstance(kind, type) and type(value) is kind, value


def _type_name(kind: Any) -> str:
    if typing.get_origin(kind) is typing.Literal:
        return "one of " + ", ".join(repr(option) for option in typing.get_args(kind))
    return "none" if kind is type(None) else getattr(kind, "__name__", str(kind))


def _is_dtype(value: Any) -> bool:
    return (
        isinstance(value, np.dtype)
        or (isinstance(value, type) and issubclass(value, np.generic))
        or (hasattr(value, "dtype") and hasattr(value, "__name__"))
    )


def to_dict(value: Any) -> Any:
    """A JSON-able form with class names, readable back by `from_dict`; paths are text.

    Raises:
        ConfigError: a value has no JSON form (for example a function).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        name = f"{type(value).__module__}:{type(value).__qualname__}"
        return {CLASS_KEY: name} | {field: to_dict(getattr(value, field)) for field in fields_of(value)}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, pathlib.PurePath):
        return str(value)
    if isinstance(value, (tuple, list, frozenset)):
        return [to_dict(item) for item in (sorted(value) if isinstance(value, frozenset) else value)]
    if isinstance(value, dict):
        return {str(key): to_dict(item) for key, item in value.items()}
    if _is_dtype(value):
        return {DTYPE_KEY: jnp.dtype(value).name}
    raise ConfigError(f"{value!r} of type {type(value).__name__} cannot be written to a config file")


def from_dict(data: Any, packages: Sequence[str] = ("nova_jax",)) -> Any:
    """Rebuilds what `to_dict` wrote. Lists become tuples, since configs are hashable; paths stay text where they may.

    Raises:
        ConfigError: a class outside `packages`, or one that does not exist here, or fields it does not have.
    """
    if isinstance(data, list):
        return tuple(from_dict(item, packages) for item in data)
    if not isinstance(data, dict):
        return data
    if set(data) == {DTYPE_KEY}:
        return jnp.dtype(data[DTYPE_KEY]).type
    if CLASS_KEY not in data:
        return {key: from_dict(item, packages) for key, item in data.items()}
    name: str = data[CLASS_KEY]
    cls = _find_class(MOVED.get(name, name), packages)
    given = {key: from_dict(item, packages) for key, item in data.items() if key != CLASS_KEY}
    known = {f.name: f.type for f in dataclasses.fields(cls) if f.init}
    if unknown := sorted(set(given) - set(known)):
        raise ConfigError(f"{data[CLASS_KEY]} has no fields {unknown}; it has {sorted(known)}")
    return cls(**{name: _as_path(item, known[name]) for name, item in given.items()})


def _as_path(value: Any, annotation: Any) -> Any:
    """A text as a path where the field takes paths and no text."""
    allowed = _allowed_types(annotation)
    takes_paths = any(isinstance(kind, type) and issubclass(kind, pathlib.PurePath) for kind in allowed)
    return pathlib.Path(value) if isinstance(value, str) and takes_paths and str not in allowed else value


def renamed(data: Any) -> Any:
    """A JSON form with classes that moved under their names of today."""
    if isinstance(data, list):
        return [renamed(item) for item in data]
    if not isinstance(data, dict):
        return data
    found = {key: renamed(item) for key, item in data.items()}
    return found | {CLASS_KEY: MOVED.get(found[CLASS_KEY], found[CLASS_KEY])} if CLASS_KEY in found else found


def defaults(data: dict[str, Any]) -> dict[str, Any]:
    """The JSON form of defaults that a saved config lacks: of fields that its class (if loaded) has got since."""
    module_name, _, class_name = data.get(CLASS_KEY, "").partition(":")
    cls = getattr(sys.modules.get(module_name), class_name, None)
    if not dataclasses.is_dataclass(cls):
        return {}
    lacking = [f for f in _fields(cls) if f.name not in data]
    found = {f.name: f.default for f in lacking if f.default is not dataclasses.MISSING}
    found |= {f.name: f.default_factory() for f in lacking if f.default_factory is not dataclasses.MISSING}
    return {name: to_dict(value) for name, value in found.items()}


def _find_class(name: str, packages: Sequence[str]) -> type:
    module_name, _, class_name = name.partition(":")
    if module_name.split(".")[0] not in packages:
        raise ConfigError(f"a config may only name classes of {', '.join(packages)}, not {name!r}")
    try:
        found = importlib.import_module(module_name)
        for part in class_name.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise _explain_missing(name, module_name, error.name or "") from error
    except AttributeError as error:
        raise ConfigError(f"class {name!r} does not exist in this version of nova_jax") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"{name!r} is not a config class")
    return found


def _explain_missing(name: str, module: str, missing: str) -> ConfigError:
    """Why a class cannot be imported: its package, its module or something that its module needs is not there."""
    package = module.partition(".")[0]
    if missing == package:
        return NotInstalled(
            f"class {name!r} is part of the repository of nova_jax, not of the installed package: run this in a "
            f"checkout of the repository, or put its folder on PYTHONPATH"
        )
    if module == missing or module.startswith(f"{missing}."):
        return ConfigError(f"class {name!r} does not exist in this version of nova_jax")
    return NotInstalled(
        f"class {name!r} needs the package {missing!r}, which is not installed: pip install 'nova-jax[data]', or "
        f"{missing} alone"
    )
