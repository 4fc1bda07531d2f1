"""Optimizers, the training step, the loop around it, what watches over it, checkpoints and logs.

`checkpoint` and `loop` are imported by name (`from nova_jax.training import loop`): they pull in Orbax.
"""

from nova_jax.training.optimizer import AdamW, Muon
from nova_jax.training.step import build, make_step, plan, start

__all__ = ["AdamW", "Muon", "build", "make_step", "plan", "start"]
