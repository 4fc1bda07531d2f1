"""The device mesh, the table that places parameters on it, and the runtime of several processes."""

from nova_jax.parallel.distributed import data_shard, global_batch, initialize, is_main
from nova_jax.parallel.mesh import MeshConfig, batch_sharding
from nova_jax.parallel.rules import RULES, shardings

__all__ = [
    "RULES",
    "MeshConfig",
    "batch_sharding",
    "data_shard",
    "global_batch",
    "initialize",
    "is_main",
    "shardings",
]
