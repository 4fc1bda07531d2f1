"""What a user can ask for: validated requests, one file and one class per capability.

    request = TextToImage(text="a red square", limits=TINY)
    request = Inpaint(image=read_picture("dog.png"), mask_image=read_mask("mask.png"), text="a cat")
    request = parse_request(public_json)

A request that breaks a rule cannot be built: `InvalidRequest` names every field at fault at once. The ranges are those
of Amazon Nova Canvas (`limits`), except that small models bring `Limits` of their own.
"""

from nova_jax.tasks.color_guided import ColorGuided
from nova_jax.tasks.inpaint import Inpaint
from nova_jax.tasks.json_form import parse_request, to_json
from nova_jax.tasks.limits import CANVAS, TINY, Limits
from nova_jax.tasks.outpaint import Outpaint
from nova_jax.tasks.pictures import read_mask, read_picture
from nova_jax.tasks.problems import InvalidRequest, Problem
from nova_jax.tasks.remove_background import RemoveBackground
from nova_jax.tasks.request import Request
from nova_jax.tasks.settings import ImageSettings
from nova_jax.tasks.text_to_image import TextToImage
from nova_jax.tasks.vary import Vary

__all__ = [
    "CANVAS",
    "TINY",
    "ColorGuided",
    "ImageSettings",
    "Inpaint",
    "InvalidRequest",
    "Limits",
    "Outpaint",
    "Problem",
    "RemoveBackground",
    "Request",
    "TextToImage",
    "Vary",
    "parse_request",
    "read_mask",
    "read_picture",
    "to_json",
]
