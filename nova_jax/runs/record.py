"""What a run folder says of its run: config.json, brought to today's form.

    {"config": the resolved TrainConfig, "data": facts about the data, "parameters": .., "environment": .., ..}

Runs of earlier versions keep loading. Classes that moved are known to `config.MOVED`; here is what changed in form:

    home     a path could start with `~`; now it is the whole path
    text     the length of captions was a field of the data, in bytes, and the encoder had none; now the data names the
             encoder that reads its captions, and the encoder knows its length
"""

import collections
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from nova_jax import config as configs
from nova_jax.training import goodput

FILE = "config.json"


def read(run_dir: str | pathlib.Path) -> dict[str, Any]:
    """The record of a run.

    Raises:
        FileNotFoundError: the folder is not a run folder.
        ValueError: its record is not JSON, or names no config.
    """
    path = pathlib.Path(run_dir) / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{run_dir} is not a run folder: it has no {FILE}; start a run first")
    try:
        return upgrade(json.loads(path.read_text(encoding="utf-8-sig")))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of a run: {error}") from error


def training_seconds(run_dir: pathlib.Path) -> float | None:
    """Seconds of training, from the speed that the log recorded; None for a run too short to have one."""
    lines = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    speeds = [line["images_per_s"] for line in lines if "images_per_s" in line]
    samples = lines[-1]["step"] * read(run_dir)["config"]["batch_size"]
    return round(samples * len(speeds) / sum(speeds), 1) if speeds else None


def activity_seconds(run_dir: pathlib.Path) -> dict[str, float]:
    """Seconds of each activity over all starts of a run (`training.goodput`); empty for those of earlier versions."""
    total: dict[str, float] = collections.defaultdict(float)
    for path in (run_dir / "log.jsonl", run_dir / "events.jsonl"):
        for line in path.read_text().splitlines() if path.is_file() else ():
            for activity, seconds in json.loads(line).get("seconds", {}).items():
                total[activity] += seconds
    return {activity: total[activity] for activity in goodput.ACTIVITIES if activity in total}


def build(saved: Any) -> Any:
    """The value that a part of a saved config describes; the only place that makes classes of `data_pipelines`.

    Raises:
        NotInstalled: the class is of a package that is not here.
        ConfigError: see `config.from_dict`.
    """
    return configs.from_dict(saved, packages=("nova_jax", "data_pipelines"))


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """A record in today's form; one that has it already is unchanged."""
    config = configs.expand_home(configs.renamed(record["config"]))
    encoder = config["model"].get("text_encoder") if isinstance(config.get("model"), dict) else None
    length = record.get("data", {}).get("text_length")
    if encoder is None or length is None or not _has_length(config["data"]):
        return record | {"config": config}
    encoder = {"length": length} | encoder
    model = config["model"] | {"text_encoder": encoder}
    return record | {"config": config | {"model": model, "data": _with_encoder(config["data"], encoder)}}


def completed(saved: Any) -> Any:
    """A saved config with the defaults of the fields that its classes have got since."""
    if isinstance(saved, list):
        return [completed(item) for item in saved]
    if not isinstance(saved, dict):
        return saved
    filled = {key: completed(item) for key, item in saved.items()}
    return configs.defaults(saved) | filled


def differences(old: Any, new: Any, changeable: Sequence[str] = (), path: str = "") -> list[str]:
    """Dotted paths at which two configs in JSON form differ, each with both values.

    Args:
        old: a config, or a part of it.
        new: the other one.
        changeable: paths that may differ; `a.**.b` is every field b that lies anywhere below a, in lists too.
        path: of the part.
    """
    old, new = (json.loads(json.dumps(value)) for value in (old, new))
    if old == new or _may_change(path, changeable):
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        parts = [(f"{path}.{key}" if path else key, old.get(key), new.get(key)) for key in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        parts = [(f"{path}[{i}]", *pair) for i, pair in enumerate(zip(old, new, strict=True))]
    else:
        return [f"{path} was {json.dumps(old)} and is {json.dumps(new)}"]
    return [line for part, then, now in parts for line in differences(then, now, changeable, part)]


def _may_change(path: str, changeable: Sequence[str]) -> bool:
    for name in changeable:
        above, is_any, field = name.partition(".**.")
        if path == name or (is_any and path.startswith(f"{above}.") and path.endswith(f".{field}")):
            return True
    return False


def _has_length(data: Any) -> bool:
    if isinstance(data, dict):
        return "text_length" in data or any(map(_has_length, data.values()))
    return isinstance(data, list) and any(map(_has_length, data))


def _with_encoder(data: Any, encoder: dict[str, Any]) -> Any:
    """The data with the encoder wherever a length stood."""
    if isinstance(data, list):
        return [_with_encoder(item, encoder) for item in data]
    if not isinstance(data, dict):
        return data
    found = {key: _with_encoder(item, encoder) for key, item in data.items() if key != "text_length"}
    return found | {"text_encoder": encoder} if "text_length" in data else found
