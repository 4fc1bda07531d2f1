"""The named colours of the scenes world, and CIE Lab.

Every object colour lies at least 40 apart in Lab (CIE 1976 distance, D65) from every other object colour and from every
background, so the nearest name survives blur, noise and the colour shift of an autoencoder.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Shaped

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

_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)  # IEC 61966-2-1, D65
_WHITE = _RGB_TO_XYZ.sum(axis=1)
_ENCODED = np.arange(256) / 255
_LINEAR = np.where(_ENCODED <= 0.04045, _ENCODED / 12.92, ((_ENCODED + 0.055) / 1.055) ** 2.4)


def rgb(name: str) -> tuple[int, int, int]:
    """The sRGB value of an object colour, of a background, or of any colour written "#rrggbb"."""
    if name.startswith("#"):
        return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
    return COLORS[name] if name in COLORS else BACKGROUNDS[name]


def to_lab(pixels: Shaped[np.ndarray, "*dims 3"]) -> Float[np.ndarray, "*dims 3"]:
    """CIE Lab of sRGB values 0..255 (rounded to 8 bits): L in 0..100, a and b about -100..100."""
    levels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    xyz = _LINEAR[levels] @ (_RGB_TO_XYZ / _WHITE[:, None]).T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def table(names: Sequence[str]) -> Float[np.ndarray, "n 3"]:
    """The Lab values of named colours, one row each."""
    return to_lab(np.array([rgb(name) for name in names]))
