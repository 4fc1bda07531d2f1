"""Few-step students: one method per file, each a loss; `method` makes the training step of any of them."""

from nova_jax.distillation.consistency import DiscreteConsistency
from nova_jax.distillation.dmd import DMD2
from nova_jax.distillation.guidance import GuidanceDistillation
from nova_jax.distillation.joint import Joint
from nova_jax.distillation.mean_flow import MeanFlow
from nova_jax.distillation.method import Method, Networks, start
from nova_jax.distillation.progressive import Progressive
from nova_jax.distillation.shortcut import Shortcut
from nova_jax.distillation.teacher import Guidance
from nova_jax.distillation.time_pairs import AnyPair, ToData

__all__ = [
    "DMD2",
    "AnyPair",
    "DiscreteConsistency",
    "Guidance",
    "GuidanceDistillation",
    "Joint",
    "MeanFlow",
    "Method",
    "Networks",
    "Progressive",
    "Shortcut",
    "ToData",
    "start",
]
