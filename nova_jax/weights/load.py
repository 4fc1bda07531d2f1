"""Model folders: those that diffusers and transformers save, and our own.

A folder is `config.json` and safetensors. The config names the class, which picks the table; the table builds the
parameters, which must be exactly the module's. Our own folders name a class of `nova_jax` and hold the parameters under
their paths (`blocks/mlp/up/kernel`), so they need no table.
"""

import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from nova_jax import atomic
from nova_jax import config as configs
from nova_jax.models.dit import DiT
from nova_jax.models.text import ByteTextEncoder, WordTextEncoder
from nova_jax.models.text.t5 import T5Encoder
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.models.vae import VAE
from nova_jax.parallel import distributed, rules
from nova_jax.types import Conditioning, Params
from nova_jax.weights import safetensors, t5, tables, wan_dit, wan_vae
from nova_jax.weights.safetensors import WeightsError

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PIPELINE_FILE = "model_index.json"
OUR_PACKAGE = "nova_jax"


class Family(NamedTuple):
    """How one public class becomes one of ours."""

    module_from_config: Callable[[Mapping[str, Any]], Any]
    entries: Callable[[Any], list[tables.Entry]]
    unused: tuple[str, ...] = ()  # tensors that may be in the file and are not needed
    twins: Mapping[str, tuple[str, ...]] = {}  # tensor -> names under which it may lie in the file instead


FAMILIES: dict[str, Family] = {
    "AutoencoderKLWan": Family(wan_vae.module_from_config, wan_vae.entries),
    "WanTransformer3DModel": Family(wan_dit.module_from_config, wan_dit.entries),
    "WanModel": Family(wan_dit.module_from_original_config, wan_dit.original_entries),
    **{name: Family(t5.module_from_config, t5.entries, t5.UNUSED, t5.TWINS) for name in t5.CLASS_NAMES},
}
MODEL_TYPES = {"t5": "T5EncoderModel", "umt5": "UMT5EncoderModel"}  # where a config has no `architectures`


def load(
    directory: str | os.PathLike[str], *, dtype: Any = jnp.float32, mesh: jax.sharding.Mesh | None = None
) -> tuple[Any, Params]:
    """Reads a model folder.

    Args:
        directory: folder with config.json and safetensors (one file or shards).
        dtype: dtype of the parameters. The module computes in float32 until its own `dtype` field is changed, for
            example with `module.clone(dtype=jnp.bfloat16)`.
        mesh: where to put the parameters, by the rules of `nova_jax.parallel.rules`; None: on the default device. One
            parameter at a time passes through host memory.

    Returns:
        The module and its parameters.

    Raises:
        WeightsError: the folder, its config or its files cannot be used; the sentence says what and where.
    """
    directory = pathlib.Path(directory)
    config = _read_config(directory)
    tensors = safetensors.read(directory)
    try:  # sizes of the wrong type, or that do not fit together, raise more than WeightsError
        module, family = _interpret(config)
        expected = abstract_params(module)
        place = _placer(expected, mesh)
        if family is None:
            table = [tables.Entry(path, path) for path in tables.flatten(expected)]
            return module, tables.convert(table, tensors, expected=expected, dtype=dtype, place=place)
        table, tensors = family.entries(module), _with_twins(tensors, family.twins)
        return module, tables.convert(table, tensors, expected=expected, unused=family.unused, dtype=dtype, place=place)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise WeightsError(f"{directory}: {error}") from error


def save(module: Any, params: Params, directory: str | os.PathLike[str], *, dtype: Any = None) -> None:
    """Writes a folder that `load` reads back: config.json and model.safetensors, each complete or not there at all.

    Args:
        module: what `params` belong to; every field is stored.
        params: arrays that this process can read whole.
        directory: made if it does not exist.
        dtype: stored dtype of floating-point parameters (for example float16 for a small file); None: as they are.

    Raises:
        WeightsError: `params` do not fit `module`.
    """
    directory = pathlib.Path(directory)
    flat = tables.flatten(params)
    tables.check_params(flat, abstract_params(module))
    config = json.dumps(configs.to_dict(module), indent=2)
    directory.mkdir(parents=True, exist_ok=True)
    safetensors.write(directory / WEIGHTS_FILE, flat, {"format": OUR_PACKAGE}, dtype=dtype)
    atomic.write(directory / CONFIG_FILE, config + "\n")


def abstract_params(module: Any) -> Any:
    """Shapes and dtypes of a module's parameters, without making them.

    Raises:
        WeightsError: a class whose inputs are not known here.
    """

    def init() -> Any:
        inputs = _example_inputs(module)
        return module.init(jax.random.key(0), *inputs)

    params = jax.eval_shape(init)  # inputs included, so that nothing is computed
    return params if isinstance(module, VAE) else params["params"]


def _example_inputs(module: Any) -> tuple[Any, ...]:
    """What `module.init` needs besides a key: the smallest inputs that make it create all its parameters."""
    if isinstance(module, VAE):
        return ()
    if isinstance(module, T5Encoder):
        return (jnp.zeros((1, 1), jnp.int32),)
    if isinstance(module, (ByteTextEncoder, WordTextEncoder)):
        return tuple(map(jnp.asarray, module.null(1)))
    if isinstance(module, DiT):
        return _latents(module), jnp.zeros(1), Conditioning()
    if isinstance(module, TextToLatent):
        ids, mask = _example_inputs(module.text_encoder)
        return _latents(module.dit), jnp.zeros(1), Conditioning(text_ids=ids, text_mask=mask)
    raise WeightsError(f"{type(module).__name__} is not a model that can be saved or loaded as a folder")


def _latents(dit: DiT) -> jax.Array:
    return jnp.zeros((1, *dit.patch_size, dit.in_channels))


def _placer(expected: Any, mesh: jax.sharding.Mesh | None) -> Callable[[str, np.ndarray], jax.Array]:
    """Puts one finished parameter where it belongs."""
    if mesh is None:
        return lambda path, array: jax.device_put(np.array(array))  # a copy: the file is mapped into memory
    shardings = tables.flatten(rules.shardings(expected, mesh))
    return lambda path, array: distributed.place(array, shardings[path])


def _read_config(directory: pathlib.Path) -> dict[str, Any]:
    if not directory.is_dir():
        raise WeightsError(f"{directory}: no such folder")
    if not (directory / CONFIG_FILE).is_file() and (directory / PIPELINE_FILE).is_file():
        folders = sorted(path.parent.name for path in directory.glob(f"*/{CONFIG_FILE}"))
        raise WeightsError(
            f"{directory} is a pipeline of several models: load one of its folders, {', '.join(folders)}"
        )
    return safetensors.parse_json_file(directory / CONFIG_FILE)


def _interpret(config: Mapping[str, Any]) -> tuple[Any, Family | None]:
    """The module a config describes, and the family of its class (None: one of our own)."""
    name = _class_name(config)
    if name.partition(".")[0] == OUR_PACKAGE:
        return configs.from_dict(dict(config)), None
    if name not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise WeightsError(f"config.json describes a {name!r}; known are {known} and the classes of {OUR_PACKAGE}")
    return FAMILIES[name].module_from_config(config), FAMILIES[name]


def _with_twins(tensors: Mapping[str, np.ndarray], twins: Mapping[str, tuple[str, ...]]) -> dict[str, np.ndarray]:
    """The tensors, with those that are missing taken from their twins."""
    found = {name: [tensors[twin] for twin in names if twin in tensors] for name, names in twins.items()}
    return {name: there[0] for name, there in found.items() if there} | dict(tensors)


def _class_name(config: Mapping[str, Any]) -> str:
    """The name as diffusers and we write it (`_class_name`), or transformers (`architectures` or `model_type`)."""
    match config:
        case {"_class_name": str(name)} | {"architectures": [str(name), *_]}:
            return name
        case {"model_type": str(kind)} if kind in MODEL_TYPES:
            return MODEL_TYPES[kind]
    raise WeightsError("config.json names no class: expected _class_name, architectures or a known model_type")
