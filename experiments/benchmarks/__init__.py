"""Measurements of speed: one runnable file each, alternating what it compares in one process."""
