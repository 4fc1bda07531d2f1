"""The scenes world: captioned images and clips in which everything is known, and a parser that reads them back."""

from data_pipelines.scenes.editing.source import CanvasPictures, CanvasScenes
from data_pipelines.scenes.source import Scenes
from data_pipelines.scenes.video.source import Reels
from data_pipelines.scenes.video.world import REEL_36, REEL_72, ReelWorld
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
    "REEL_36",
    "REEL_72",
    "SHAPES_64",
    "VARIED_32",
    "VARIED_64",
    "CanvasPictures",
    "CanvasScenes",
    "Object",
    "ReelWorld",
    "Reels",
    "Scene",
    "Scenes",
    "World",
]
