"""Scenes edited: pairs of scenes and exact answers to every editing task."""
