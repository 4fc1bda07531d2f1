"""Programs of a run compiled ahead of time: a new process samples without tracing or compiling.

    RUN/programs/draw-0c5d2b9e1f3a.json      what the program computes, and what it was compiled for
    RUN/programs/draw-0c5d2b9e1f3a.program   the program for these devices (`jax.experimental.serialize_executable`)
    RUN/programs/draw-0c5d2b9e1f3a.export    the same before compilation, for other devices (`jax.export`)
    RUN/programs/manifest.sha256             digests of them all, as `sha256sum --check` reads them

Every jitted function of sampling is called through `placement.call`, which asks the run's `programs`: a `Writer`
compiles and keeps what is called, a `Reader` finds it again. A program is known without tracing by what it computes:
the name of the function, the values that it closes over, the mesh and the forms of its arguments. What it was compiled
for must be the same as well: versions, the source of nova_jax, devices and settings of jax. A program that was compiled
for something else is refused, by its name; one that is missing is compiled.

These files are machine code, which jax reads through pickle: they do whatever their author wanted. Nothing is read
unless a `Reader` is asked for, and nothing that the manifest does not name with its digest. That shows damage, not
malice: use the programs of a run folder that you compiled yourself.
"""

import functools
import hashlib
import importlib.util
import inspect
import json
import logging
import pathlib
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import serialize_executable
from jax.sharding import NamedSharding

import nova_jax
from nova_jax import atomic, compilation_cache, environment, types
from nova_jax import config as configs

FOLDER = "programs"
MANIFEST = "manifest.sha256"
OF_DEVICES = ("backend", "compiler", "device_kind", "processor")  # what an exported program need not share

logger = logging.getLogger(__name__)


class StaleProgram(ValueError):
    """A program that was compiled for something else, or that changed since."""


class Writer:
    """Compiles every function that is called, and keeps the program in the run folder.

    Args:
        run_dir: the run folder.
        platforms: for which to keep the program before compilation as well: "cpu", "cuda", "rocm", "tpu".

    Attributes:
        written: names of the programs, in the order of their first calls.
    """

    def __init__(self, run_dir: str | pathlib.Path, platforms: Sequence[str] = ()) -> None:
        self.folder, self.platforms = pathlib.Path(run_dir) / FOLDER, tuple(platforms)
        self.written: list[str] = []
        self._programs: dict[str, Callable[..., Any]] = {}
        if jax.process_count() > 1:
            raise ValueError("programs are compiled ahead by one process: several would each need their own")
        if platforms and importlib.util.find_spec("flatbuffers") is None:
            raise ImportError("programs for other platforms need flatbuffers: pip install 'nova-jax[export]'")

    def find(self, function: Any, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """The compiled function, once it is on disk."""
        if not is_jitted(function):
            return function
        what = describe(function, arguments)
        name = name_of(what)
        if name not in self._programs:
            self._programs[name] = self._compile(name, what, function, arguments)
            self.written.append(name)
        return self._programs[name]

    def _compile(self, name: str, what: dict[str, Any], function: Any, arguments: tuple[Any, ...]) -> Any:
        with compilation_cache.unused():
            compiled = function.lower(*arguments).compile()
        files = {
            f"{name}.json": json.dumps({"computes": what, "compiled_for": surroundings()}, indent=1).encode(),
            f"{name}.program": pickle.dumps(serialize_executable.serialize(compiled)),
        }
        if self.platforms:
            exported = jax.export.export(function, platforms=self.platforms)(*arguments)
            files[f"{name}.export"] = bytes(exported.serialize())
        self.folder.mkdir(parents=True, exist_ok=True)
        digests = _read_manifest(self.folder)
        for file in (f"{name}.program", f"{name}.export", f"{name}.json"):
            digests.pop(file, None)
            (self.folder / file).unlink(missing_ok=True)
        for file, content in files.items():
            with atomic.replacing(self.folder / file) as partial:
                partial.write_bytes(content)
            digests[file] = hashlib.sha256(content).hexdigest()
        lines = [f"{digest}  {file}\n" for file, digest in sorted(digests.items())]
        atomic.write(self.folder / MANIFEST, "".join(lines))
        return compiled


class Reader:
    """Finds the programs that a `Writer` kept.

    Raises:
        FileNotFoundError: the run folder has none.
    """

    def __init__(self, run_dir: str | pathlib.Path) -> None:
        self.folder = pathlib.Path(run_dir) / FOLDER
        if not (self.folder / MANIFEST).is_file():
            raise FileNotFoundError(f"{self.folder} holds no programs: write some with `nova compile {run_dir}`")
        self._digests = _read_manifest(self.folder)
        self._programs: dict[str, Callable[..., Any]] = {}

    def find(self, function: Any, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """The program of a function, or the function itself where there is none, which a warning says.

        Raises:
            StaleProgram: there is one, for other devices, versions or settings than these, or its file changed.
        """
        if not is_jitted(function):
            return function
        name = name_of(describe(function, arguments))
        if name not in self._programs:
            if f"{name}.json" in self._digests:
                self._programs[name] = self._load(name)
            else:
                logger.warning("%s has no program %s: compiling it", self.folder, name)
                self._programs[name] = function
        return self._programs[name]

    def _load(self, name: str) -> Callable[..., Any]:
        kept, here = json.loads(self._read(f"{name}.json"))["compiled_for"], surroundings()
        changed = [key for key in here if kept.get(key) != here[key]]
        if not changed:
            content = pickle.loads(self._read(f"{name}.program"))
            return serialize_executable.deserialize_and_load(*content, execution_devices=_devices())
        if set(changed) <= set(OF_DEVICES) and f"{name}.export" in self._digests:
            exported = jax.export.deserialize(bytearray(self._read(f"{name}.export")))
            if _platform() in exported.platforms:
                return jax.jit(exported.call)
        differences = "; ".join(f"{key} was {kept.get(key)} and is {here[key]}" for key in changed)
        raise StaleProgram(
            f"{self.folder / name}.program was compiled for something else: {differences}. Run `nova compile "
            f"{self.folder.parent}` here, or sample without --compiled"
        )

    def _read(self, file: str) -> bytes:
        """A file that the manifest names, if it is as it was written."""
        path = self.folder / file
        content = path.read_bytes() if file in self._digests and path.is_file() else b""
        if hashlib.sha256(content).hexdigest() != self._digests.get(file):
            raise StaleProgram(
                f"{path} is not the file that {MANIFEST} names: run `nova compile {self.folder.parent}` again"
            )
        return content


def is_jitted(function: Any) -> bool:
    """Whether this is a function that jax compiles, and not one that calls several."""
    return hasattr(function, "lower") and hasattr(function, "__wrapped__")


def describe(function: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    """What a call of a jitted function computes, as JSON: its name, what it closes over, mesh and forms of arguments.

    Raises:
        ConfigError: it closes over a value that has no JSON form.
    """
    inner = inspect.unwrap(function)
    closed = inspect.getclosurevars(inner).nonlocals
    leaves = jax.tree_util.tree_leaves_with_path(arguments)
    return {
        "function": f"{inner.__module__}.{inner.__qualname__}",
        "closes_over": {name: configs.to_dict(value) for name, value in sorted(closed.items())},
        "mesh": dict(jax.sharding.get_abstract_mesh().shape),
        "arguments": {jax.tree_util.keystr(path): _form(leaf) for path, leaf in leaves},
    }


def name_of(what: Mapping[str, Any]) -> str:
    """The name of a program's files: that of its function, and a digest of all that it computes."""
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    return f"{what['function'].rpartition('.')[2]}-{digest[:12]}"


def surroundings() -> dict[str, Any]:
    """What a program is compiled for, here and now."""
    device = jax.devices()[0]
    options: Any = jax.config
    return {
        "jax": jax.__version__,
        "source of nova_jax": _source_digest(),
        "backend": jax.default_backend(),
        "compiler": device.client.platform_version,
        "device_kind": device.device_kind,
        "processor": environment.processor() if jax.default_backend() == "cpu" else None,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "XLA_FLAGS": environment.xla_flags(),
        "matmul precision": options.jax_default_matmul_precision,
        "64 bits": options.jax_enable_x64,
    }


@functools.cache
def _source_digest() -> str:
    """Of every module of the library."""
    digest, root = hashlib.sha256(), pathlib.Path(nova_jax.__file__).parent
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _devices() -> list[Any]:
    """Those that programs run on here: of the mesh, or the default one."""
    mesh = jax.sharding.get_mesh()
    return jax.devices()[:1] if mesh.empty else list(mesh.devices.flat)


def _platform() -> str:
    """The name that `jax.export` gives to the default backend."""
    return jax.devices()[0].client.platform if jax.default_backend() != "gpu" else "cuda"


def _form(leaf: Any) -> str:
    """Dtype, shape and, on a mesh, how an array is cut."""
    sharding = getattr(leaf, "sharding", None)
    cut = f" {sharding.spec}" if isinstance(sharding, NamedSharding) else ""
    return f"{jax.dtypes.result_type(leaf)}{list(np.shape(leaf))}{cut}"


def _read_manifest(folder: pathlib.Path) -> dict[str, str]:
    """Digests by file name; none where there is no manifest."""
    path = folder / MANIFEST
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {file: digest for digest, _, file in (line.partition("  ") for line in lines)}


for _array_tuple in (types.Conditioning, types.TextKeys, types.Sampled):
    jax.export.register_namedtuple_serialization(_array_tuple, serialized_name=f"nova_jax.{_array_tuple.__name__}")
