"""Tables from the tensor names of public models to our parameter paths, and the one function that applies them.

A table is a list of entries. An entry with several sources stacks them on a new leading axis, which is how numbered
blocks become one scanned parameter:

    Entry("head.weight", "head/kernel", linear)
    Entry(numbered("blocks.{}.attn.q.weight", 30), "blocks/attention/query/kernel", linear)

Nothing is skipped silently: tensors that no entry names, absent sources and wrong shapes are all reported by name.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nova_jax.weights.safetensors import DAMAGED, WeightsError, cast

MAX_LISTED = 20

Transform = Callable[[np.ndarray], np.ndarray]


def keep(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


def linear(tensor: np.ndarray) -> np.ndarray:
    """(out, in) -> (in, out)."""
    return tensor.T


def convolution(tensor: np.ndarray) -> np.ndarray:
    """(out, in, *window) -> (*window, in, out), for any number of dimensions."""
    return np.moveaxis(tensor, (0, 1), (-1, -2))


def squeeze(tensor: np.ndarray) -> np.ndarray:
    """Drops axes of size one."""
    return tensor.squeeze()


class Entry(NamedTuple):
    """Where one parameter comes from: transform(source), or the stack of it over several sources."""

    source: str | Sequence[str]
    target: str  # path joined by "/"
    transform: Transform = keep

    @property
    def sources(self) -> tuple[str, ...]:
        """All tensor names this entry reads."""
        return (self.source,) if isinstance(self.source, str) else tuple(self.source)


def numbered(pattern: str, count: int) -> tuple[str, ...]:
    """`blocks.{}.weight`, 2 -> blocks.0.weight, blocks.1.weight."""
    return tuple(pattern.format(i) for i in range(count))


def convert(
    entries: Sequence[Entry],
    tensors: Mapping[str, np.ndarray],
    *,
    expected: Any = None,
    unused: Sequence[str] = (),
    dtype: Any = np.float32,
    place: Callable[[str, np.ndarray], Any] = lambda path, array: array,
) -> dict[str, Any]:
    """Builds the parameter tree, one parameter at a time, so that host memory beyond the result stays small.

    Args:
        entries: the table.
        tensors: the file's tensors.
        expected: tree of arrays or shapes of the module; checked against targets and their shapes.
        unused: name patterns (with `*`) of tensors the module is known not to need.
        dtype: dtype of the parameters.
        place: called with path and array as each is finished, for example to put it on devices.

    Raises:
        WeightsError: sources are missing, tensors are unknown, targets are missing or unknown, or shapes differ; every
            name is listed, up to 20 of a kind. Or a value lies beyond the range of `dtype`; see `safetensors.cast`.
    """
    _check_names(entries, tensors, unused)
    if expected is not None:
        _check_shapes(entries, tensors, expected)
    return unflatten({entry.target: place(entry.target, _build(entry, tensors, dtype)) for entry in entries})


def check_params(params: Mapping[str, Any], expected: Any) -> None:
    """Makes sure that flat `params` have the paths and shapes of `expected`.

    Raises:
        WeightsError: names are missing or unknown, or shapes differ.
    """
    shapes = {path: leaf.shape for path, leaf in flatten(expected).items()}
    _raise_if({"missing": set(shapes) - set(params), "unknown": set(params) - set(shapes)})
    wrong = [
        f"{path} {params[path].shape}, not {shape}" for path, shape in shapes.items() if params[path].shape != shape
    ]
    _raise_if({"of the wrong shape": wrong})


def check_finite(params: Mapping[str, Any]) -> None:
    """Makes sure that flat `params` hold neither NaN nor infinity.

    Raises:
        WeightsError: some do; every path is listed, up to 20.
    """
    counts = {path: np.count_nonzero(~np.isfinite(np.asarray(leaf))) for path, leaf in params.items()}
    _raise_if({"with NaN or infinity": [f"{path} ({n} values)" for path, n in counts.items() if n]}, DAMAGED)


def flatten(tree: Any) -> dict[str, Any]:
    """Nested dicts as {"path/to/leaf": leaf}."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(str(key.key) for key in path): leaf for path, leaf in leaves}


def unflatten(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`.

    Raises:
        WeightsError: a path is also the folder of another.
    """
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
            if not isinstance(node, dict):
                raise WeightsError(f"{path}: its parent {folder!r} is a parameter itself")
        if name in node:
            raise WeightsError(f"{path}: named twice")
        node[name] = leaf
    return tree


def _build(entry: Entry, tensors: Mapping[str, np.ndarray], dtype: Any) -> np.ndarray:
    if isinstance(entry.source, str):
        return cast(entry.source, entry.transform(tensors[entry.source]), dtype, copy=True)
    first = entry.transform(tensors[entry.sources[0]])
    stack = np.empty((len(entry.sources), *first.shape), dtype)
    for i, source in enumerate(entry.sources):
        stack[i] = cast(source, entry.transform(tensors[source]), dtype)
    return stack


def _check_names(entries: Sequence[Entry], tensors: Mapping[str, np.ndarray], unused: Sequence[str]) -> None:
    wanted = {source for entry in entries for source in entry.sources}
    unknown = [name for name in set(tensors) - wanted if not any(fnmatch.fnmatchcase(name, p) for p in unused)]
    _raise_if({"missing": wanted - set(tensors), "unknown": unknown})


def _check_shapes(entries: Sequence[Entry], tensors: Mapping[str, np.ndarray], expected: Any) -> None:
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(expected).items()}
    targets = {entry.target for entry in entries}
    _raise_if(
        {"parameters without a source": set(shapes) - targets, "no parameters of this module": targets - set(shapes)}
    )
    wrong = []
    for entry in entries:
        stack = () if isinstance(entry.source, str) else (len(entry.source),)
        for source in entry.sources:
            given = tensors[source].shape
            try:
                shape = stack + entry.transform(tensors[source]).shape
            except ValueError:  # for example a matrix where the transform expects a convolution
                shape = None
            if shape != shapes[entry.target]:
                wrong.append(f"{source} {given} for {entry.target} {shapes[entry.target]}")
    _raise_if({"of the wrong shape": wrong})


def _raise_if(problems: Mapping[str, Iterable[str]], *advice: str) -> None:
    """One error that lists the names under each heading, sorted, at most `MAX_LISTED` of a kind, then `advice`."""
    parts = []
    for heading, names in problems.items():
        if names := sorted(names):
            more = f", and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
            listed = ", ".join(name if name.isprintable() else ascii(name) for name in names[:MAX_LISTED])
            parts.append(f"{len(names)} {heading}: {listed}{more}")
    if parts:
        raise WeightsError("; ".join([*parts, *advice]))
