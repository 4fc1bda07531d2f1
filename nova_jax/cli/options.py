"""Options that several commands have."""

import dataclasses
import pathlib
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """The devices to sample on. Default: all of them over data, as far as there are images or clips for them."""

    data: int = -1
    """Over how many the images or clips of a call are cut; -1: all that the others leave."""
    fsdp: int = 1
    """The same, and the parameters as well."""
    context: int = 1
    """Over how many the tokens of each image or clip are cut."""
    tensor: int = 1
    """Over how many heads and MLP features are cut."""

    def make(self, run: pathlib.Path, **rows: Any) -> Any:
        """The mesh for a run; None: one device."""
        from nova_jax import generation
        from nova_jax.parallel import MeshConfig

        return generation.mesh_for(run, MeshConfig(**dataclasses.asdict(self)), **rows)
