"""The named colours of the scenes world, and CIE Lab.

Every object colour lies at least 40 apart in Lab (CIE 1976 distance, D65) from every other object colour and from every
background, so the nearest name survives blur, noise and the colour shift of an autoencoder.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nova_jax.tasks import color

COLORS = {
    "red": (222, 30, 44),
    "orange": (245, 142, 36),
    "yellow": (255, 230, 50),
    "green": (38, 166, 78),
    "cyan": (40, 214, 214),
    "blue": (16, 112, 230),
    "purple": (124, 30, 136),
    "pink": (255, 120, 180),
}
BACKGROUNDS = {"white": (250, 250, 248), "gray": (136, 138, 146), "black": (22, 22, 28)}

to_lab = color.to_lab


def rgb(name: str) -> tuple[int, int, int]:
    """The sRGB value of an object colour, of a background, or of any colour written "#rrggbb"."""
    if name.startswith("#"):
        return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
    return COLORS[name] if name in COLORS else BACKGROUNDS[name]


def table(names: Sequence[str]) -> Float[np.ndarray, "n 3"]:
    """The Lab values of named colours, one row each."""
    return to_lab(np.array([rgb(name) for name in names]))
