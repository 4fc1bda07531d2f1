"""The `nova` command: commands, requests for images, requests for videos."""

from nova_jax.cli.commands import main

__all__ = ["main"]
