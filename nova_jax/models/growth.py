"""From the parameters of a trained network to those of a larger one that starts out equal to it.

A grown network has inputs that the old one lacks (`nova_jax.conditions`): a target time or a guidance scale (a student
of its teacher), aligned channels, extra frames, a palette, a task (an editing model of a text-to-image model), or a
condition of your own. Either the last layer of a new input starts at zero, or the input adds nothing while it is
absent, so the grown network computes what the old one does, to the bit.
"""

from typing import Any

import jax
import jax.numpy as jnp

from nova_jax import conditions
from nova_jax.parallel import rules
from nova_jax.types import Params


def new_inputs() -> tuple[str, ...]:
    """The names of parameters that only a grown network may have: those of conditions, and of absolute positions."""
    return (*(name for c in conditions.CONDITIONS.values() for name in c.parameters), "patch_embed_position")


def grow(fresh: Params, old: Params) -> Params:
    """The grown network's parameters: the old ones where it has them, `fresh` for the new inputs.

    Args:
        fresh: newly initialised parameters of the grown network.
        old: parameters of the trained one.

    Raises:
        ValueError: see `check_growth`.
    """
    check_growth(fresh, old)
    known = _by_path(old)
    return jax.tree_util.tree_map_with_path(lambda path, leaf: jnp.asarray(known.get(rules.name_of(path), leaf)), fresh)


def check_growth(fresh: Params, old: Params) -> None:
    """Compares paths and shapes of a grown network with those of the old one.

    Raises:
        ValueError: an array of another shape than the old one's, one the grown network lacks, or a new one that belongs
            to no new input; all are named.
    """
    known, new = _by_path(old), _by_path(fresh)
    faults = [
        f"{path} has shape {new[path].shape}, in the trained network {known[path].shape}"
        for path in sorted(set(known) & set(new))
        if known[path].shape != new[path].shape
    ]
    faults += [f"{path} of the trained network is not in the new one" for path in sorted(set(known) - set(new))]
    added = sorted(set(new) - set(known))
    allowed = new_inputs()
    faults += [f"{path} is not in the trained network" for path in added if not set(allowed) & set(path.split("/"))]
    if faults:
        raise ValueError(
            "a student, or an editing model, has the arrays of the network that it starts from and new inputs at most "
            f"({', '.join(allowed)}): " + "; ".join(faults)
        )


def _by_path(tree: Params) -> dict[str, Any]:
    return {rules.name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
