"""The scenes world: captioned pictures and clips in which everything is known, and a parser that reads them back."""

from data_pipelines.scenes.canvas import CanvasPictures, CanvasScenes
from data_pipelines.scenes.clips import Clips
from data_pipelines.scenes.source import Scenes
from data_pipelines.scenes.world import (
    CANVAS_32,
    CANVAS_64,
    QUICKSTART,
    SHAPES_64,
    VARIED_32,
    VARIED_64,
    Object,
    Scene,
    World,
)

__all__ = [
    "CANVAS_32",
    "CANVAS_64",
    "QUICKSTART",
    "SHAPES_64",
    "VARIED_32",
    "VARIED_64",
    "CanvasPictures",
    "CanvasScenes",
    "Clips",
    "Object",
    "Scene",
    "Scenes",
    "World",
]
