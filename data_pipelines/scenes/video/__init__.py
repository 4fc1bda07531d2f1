"""Scenes that move: actors, cameras, shots and films."""
