"""Overrides reach every field, refuse everything else, and configs survive the trip through JSON."""

import dataclasses
import json
import os
import pathlib
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp
import pytest

from nova_jax import config
from nova_jax.parallel import mesh


class Layer(nn.Module):
    width: int
    dtype: type = jnp.float32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimizer:
    peak: float = 1e-3
    decay: Literal["constant", "cosine"] = "constant"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    model: Layer = Layer(width=4)  # noqa: RUF009  Linen modules are frozen
    optimizer: Optimizer = Optimizer()
    steps: int = 10
    patch: tuple[int, int, int] = (1, 2, 2)
    path: str | None = None
    names: tuple[str, ...] = ()
    resume: bool = True

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be positive")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshLike:
    rows: int = 2
    columns: int = 2
    total: int = 4

    def __post_init__(self):
        if self.rows * self.columns != self.total:
            raise ValueError(f"{self.rows} x {self.columns} is not {self.total}")


def test_overrides_reach_nested_dataclasses_and_linen_modules():
    changed = config.override(
        Config(),
        [
            "model.width=8",
            "model.dtype=bfloat16",
            "optimizer.peak=1",
            "optimizer.decay=cosine",
            "patch=(1,1,1)",
            "path=/data",
            "resume=false",
        ],
    )
    assert changed.model.width == 8
    assert changed.model.dtype == jnp.bfloat16
    assert changed.optimizer == Optimizer(peak=1.0, decay="cosine")
    assert (changed.patch, changed.path, changed.resume) == ((1, 1, 1), "/data", False)
    assert config.override(changed, ["path=none"]).path is None


def test_bare_words_make_a_tuple_where_names_are_wanted():
    assert config.override(Config(), ["names=one, two"]).names == ("one", "two")
    assert config.override(Config(), ["names=one"]).names == ("one",)
    with pytest.raises(config.ConfigError, match="patch: expected tuple, got 'one,two'"):
        config.override(Config(), ["patch=one,two"])


def test_a_whole_number_stays_one_where_fractions_are_allowed_too():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Limit:
        either: int | float = 0.001
        other_way_round: float | int = 0.001
        fraction: float = 0.5

    changed = config.override(Limit(), ["either=5", "other_way_round=5", "fraction=1"])
    assert [type(value) for value in (changed.either, changed.other_way_round, changed.fraction)] == [int, int, float]
    assert config.override(Limit(), ["either=0.01"]).either == 0.01


def test_what_a_shell_makes_of_braces_names_all_files_and_other_paths_keep_their_last_value():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Files:
        paths: str | os.PathLike[str] | tuple[str, ...] = ""
        name: str = ""

    changed = config.override(Files(), ["paths=a-0.tar", "paths=a-1.tar", "name=x", "name=y"])
    assert changed == Files(paths="a-0.tar,a-1.tar", name="y")
    assert config.override(Files(), ["paths=('a.tar', 'b.tar')"]).paths == ("a.tar", "b.tar")
    assert config.override(Files(), ["paths=a.tar", "paths=a.tar"]).paths == "a.tar"
    with pytest.raises(config.ConfigError, match="its field peak is given as well"):
        config.override(Config(), ["optimizer.peak=1", "optimizer=x"])


def test_none_empties_every_field_that_may_hold_nothing_and_no_other():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Holder:
        optional: Optimizer | None = Optimizer()
        anything: object = None
        needed: Optimizer = Optimizer()
        dtype: type | None = jnp.float32

    full = Holder(anything=Optimizer())
    changed = config.override(full, ["optional=none", "anything=None", "dtype=NONE"])
    assert (changed.optional, changed.anything, changed.dtype) == (None, None, None)
    with pytest.raises(config.ConfigError, match="needed is a Optimizer; set one of its fields: peak, decay"):
        config.override(full, ["needed=none"])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    place: str = ""
    file: pathlib.Path = pathlib.Path()
    several: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moves:
    first: Places = Places()
    second: Places = Places()
    place: str | None = None
    model: Layer = Layer(width=4)  # noqa: RUF009  Linen modules are frozen


def test_a_tilde_is_the_home_folder_in_every_field_but_prose(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    places = Places(place="~/a", file=pathlib.Path("~/b"), several=("~/c", "d~", "~"), prompts=("~/e",))
    home = Places(
        place=f"{tmp_path}/a", file=tmp_path / "b", several=(f"{tmp_path}/c", "d~", f"{tmp_path}"), prompts=("~/e",)
    )
    moves = Moves(first=places, place="~")
    found = config.expand_home(moves)
    assert found == Moves(first=home, place=f"{tmp_path}")
    assert (found.second, found.model) == (moves.second, moves.model)
    assert config.expand_home(found) is found
    assert config.override(moves, ["place=~/x", "second.several=~/y,z"]) == Moves(
        first=home, place=f"{tmp_path}/x", second=Places(several=(f"{tmp_path}/y", "z"))
    )
    plain = {"place": "~/a", "parts": [{"several": ["~/c"], "prompts": ["~/e"]}], "length": 3}
    assert config.expand_home(plain) == {
        "place": f"{tmp_path}/a",
        "parts": [{"several": [f"{tmp_path}/c"], "prompts": ["~/e"]}],
        "length": 3,
    }


@pytest.mark.parametrize(
    ("missing", "error", "sentence"),
    [
        ("data_pipelines", config.NotInstalled, "is part of the repository of nova_jax"),
        ("grain", config.NotInstalled, "needs the package 'grain', which is not installed"),
        ("data_pipelines.datasets", config.ConfigError, "does not exist in this version"),
    ],
)
def test_a_class_that_cannot_be_imported_says_whose_fault_it_is(missing, error, sentence, monkeypatch):
    def fail(name):
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(config.importlib, "import_module", fail)
    with pytest.raises(error, match=f"class 'data_pipelines.datasets:Pixels' {sentence}") as caught:
        config.from_dict({"_class_name": "data_pipelines.datasets:Pixels"}, packages=("data_pipelines",))
    assert type(caught.value) is error


def test_overrides_take_effect_together():
    pair = config.override(MeshLike(), ["columns=3", "total=9", "rows=3"])
    assert (pair.rows, pair.columns, pair.total) == (3, 3, 9)
    with pytest.raises(config.ConfigError, match="rows=5: 5 x 2 is not 4"):
        config.override(MeshLike(), ["rows=5"])


def test_an_unknown_field_is_an_error_that_lists_the_fields():
    with pytest.raises(config.ConfigError, match=r"optimizer\.paek.*has no field 'paek'; it has peak, decay.*'peak'"):
        config.override(Config(), ["optimizer.paek=1"])


def test_a_wrong_value_says_what_is_expected():
    for assignment, message in [
        ("steps=ten", "steps: expected int, got 'ten'"),
        ("steps=1.5", "steps: expected int, got '1.5'"),
        ("steps=true", "steps: expected int, got 'true'"),
        ("resume=1", "resume: expected bool"),
        ("optimizer.decay=step", "one of 'constant', 'cosine'"),
        ("optimizer=Adam", "is a Optimizer; set one of its fields: peak, decay"),
        ("steps.value=1", "has no fields to set"),
        ("steps", "write path=value"),
        ("steps=0", "steps=0: steps is 0; it must be positive"),
        ("model.dtype=float33", "expected a dtype"),
    ]:
        with pytest.raises(config.ConfigError, match=message):
            config.override(Config(), [assignment])


def test_library_configs_survive_the_trip_through_json():
    value = mesh.MeshConfig(fsdp=2)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(value)))) == value


def test_a_path_is_text_in_json_and_a_path_again_where_only_a_path_may_stand(tmp_path):
    moves = Moves(first=Places(file=tmp_path / "b", several=(tmp_path / "c", "d")), place=tmp_path)
    saved = json.loads(json.dumps(config.to_dict(moves)))
    assert (saved["place"], saved["first"]["several"]) == (f"{tmp_path}", [f"{tmp_path}/c", "d"])
    packages = (Moves.__module__.partition(".")[0],)
    found = config.from_dict(saved | {"model": None}, packages)
    assert (found.place, found.first.several) == (f"{tmp_path}", (f"{tmp_path}/c", "d"))
    assert found.first.file == tmp_path / "b"
    assert config.override(moves, ["first.file=x/y"]).first.file == pathlib.Path("x/y")


def test_a_config_file_may_only_name_library_classes():
    with pytest.raises(config.ConfigError, match="may only name classes of nova_jax"):
        config.from_dict({"_class_name": "subprocess:Popen", "args": ["true"]})
    with pytest.raises(config.ConfigError, match="does not exist"):
        config.from_dict({"_class_name": "nova_jax.config:Missing"})
    with pytest.raises(config.ConfigError, match="is not a config class"):
        config.from_dict({"_class_name": "nova_jax.config:override"})


def test_functions_have_no_json_form():
    with pytest.raises(config.ConfigError, match="cannot be written"):
        config.to_dict({"f": len})
