"""Evaluation: metrics that say how sure they are, and need no downloaded network."""

from nova_jax.evaluation import geneval, intervals

__all__ = ["geneval", "intervals"]
