"""Few-step students: one method a file, each a recipe for the state and the step that the training loop runs."""

from nova_jax.distillation.consistency import DiscreteConsistency
from nova_jax.distillation.dmd import DMD2
from nova_jax.distillation.flow_map import make_flow_map
from nova_jax.distillation.guidance import GuidanceDistillation
from nova_jax.distillation.joint import Joint
from nova_jax.distillation.mean_flow import MeanFlow
from nova_jax.distillation.method import Method, Networks, start
from nova_jax.distillation.semigroup import Progressive, Shortcut
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
    "make_flow_map",
    "start",
]
