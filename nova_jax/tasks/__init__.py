"""What a user can ask for: validated requests, one file and one class per capability.

    request = TextToImage(text="a red square", limits=TINY)
    request = Inpaint(image=read_image("dog.png"), mask_image=read_mask("mask.png"), text="a cat")
    request = parse_request(public_json)

    request = TextToVideo(text="a red square moves left", limits=TINY_REEL)

A request that breaks a rule cannot be built: `InvalidRequest` names every field at fault at once. The ranges are those
of Amazon Nova Canvas and Amazon Nova Reel (`limits`), except that small models bring `Limits` or `VideoLimits` of their
own.
"""

import warnings
from typing import Any

from nova_jax.tasks.color_guided import ColorGuided
from nova_jax.tasks.image_inputs import read_image, read_mask
from nova_jax.tasks.inpaint import Inpaint
from nova_jax.tasks.json_form import parse_request, to_json
from nova_jax.tasks.limits import CANVAS, REEL, TINY, TINY_REEL, Limits, VideoLimits
from nova_jax.tasks.multi_shot import MultiShot, MultiShotAutomated, MultiShotManual
from nova_jax.tasks.outpaint import Outpaint
from nova_jax.tasks.problems import InvalidRequest, Problem
from nova_jax.tasks.remove_background import RemoveBackground
from nova_jax.tasks.request import ImageRequest, Request, ShotRequest, VideoRequest
from nova_jax.tasks.settings import ImageSettings
from nova_jax.tasks.shots import split_shots
from nova_jax.tasks.text_to_image import TextToImage
from nova_jax.tasks.text_to_video import TextToVideo
from nova_jax.tasks.vary import Vary

__all__ = [
    "CANVAS",
    "REEL",
    "TINY",
    "TINY_REEL",
    "ColorGuided",
    "ImageRequest",
    "ImageSettings",
    "Inpaint",
    "InvalidRequest",
    "Limits",
    "MultiShot",
    "MultiShotAutomated",
    "MultiShotManual",
    "Outpaint",
    "Problem",
    "RemoveBackground",
    "Request",
    "ShotRequest",
    "TextToImage",
    "TextToVideo",
    "Vary",
    "VideoLimits",
    "VideoRequest",
    "parse_request",
    "read_image",
    "read_mask",
    "split_shots",
    "to_json",
]


def __getattr__(name: str) -> Any:
    if name == "read_picture":
        warnings.warn("tasks.read_picture is now tasks.read_image", DeprecationWarning, stacklevel=2)
        return read_image
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
