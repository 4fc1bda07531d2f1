"""From a teacher's parameters to those of a student that starts out equal to it.

A student is the teacher's network with inputs that the teacher lacks: the second time r, and a guidance scale. The last
layer of their embedders starts at zero, so the grown network answers as the teacher does, to the bit, whatever r is.
"""

from typing import Any

import jax
import jax.numpy as jnp

from nova_jax.types import Params

NEW_INPUTS = ("time_embed_r", "guidance_embed")


def grow(fresh: Params, teacher: Params) -> Params:
    """The student's parameters: the teacher's where it has them, `fresh` for the new inputs.

    Args:
        fresh: newly initialised parameters of the student.
        teacher: parameters of its teacher.

    Raises:
        ValueError: see `check_growth`.
    """
    check_growth(fresh, teacher)
    old = _by_path(teacher)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(old.get(_name(path), leaf)), fresh)


def check_growth(fresh: Params, teacher: Params) -> None:
    """Compares paths and shapes of a student with those of its teacher.

    Raises:
        ValueError: an array of another shape than the teacher's, one the student lacks, or a new one that belongs to no
            new input; all are named.
    """
    old, new = _by_path(teacher), _by_path(fresh)
    faults = [
        f"{path} has shape {new[path].shape}, the teacher's {old[path].shape}"
        for path in sorted(set(old) & set(new))
        if old[path].shape != new[path].shape
    ]
    faults += [f"{path} of the teacher is not in the student" for path in sorted(set(old) - set(new))]
    added = sorted(set(new) - set(old))
    faults += [f"{path} is not in the teacher" for path in added if not set(NEW_INPUTS) & set(path.split("/"))]
    if faults:
        raise ValueError(
            "a student has the teacher's network, with new inputs for the second time and the guidance scale at most: "
            + "; ".join(faults)
        )


def _by_path(tree: Params) -> dict[str, Any]:
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
