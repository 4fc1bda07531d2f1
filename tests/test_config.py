"""Overrides reach every field, refuse everything else, and configs survive the trip through JSON."""

import dataclasses
import json
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


def test_overrides_take_effect_together():
    pair = config.override(MeshLike(), ["columns=3", "total=9", "rows=3"])
    assert (pair.rows, pair.columns, pair.total) == (3, 3, 9)
    with pytest.raises(config.ConfigError, match="rows=5: 5 x 2 is not 4"):
        config.override(MeshLike(), ["rows=5"])


def test_an_unknown_field_is_an_error_that_lists_the_fields():
    with pytest.raises(config.ConfigError, match=r"optimizer\.paek.*has no field 'paek'; it has peak, decay.*'peak'"):
        config.override(Config(), ["optimizer.paek=1"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
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
    ],
)
def test_a_wrong_value_says_what_is_expected(assignment, message):
    with pytest.raises(config.ConfigError, match=message):
        config.override(Config(), [assignment])


def test_library_configs_survive_the_trip_through_json():
    value = mesh.MeshConfig(fsdp=2)
    assert config.from_dict(json.loads(json.dumps(config.to_dict(value)))) == value


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
