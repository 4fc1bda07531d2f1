"""CIE Lab, in which equal distances look about equally far apart."""

import numpy as np
from jaxtyping import Float, Shaped

_RGB_TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)  # IEC 61966-2-1, D65
_WHITE = _RGB_TO_XYZ.sum(axis=1)
_ENCODED = np.arange(256) / 255
_LINEAR = np.where(_ENCODED <= 0.04045, _ENCODED / 12.92, ((_ENCODED + 0.055) / 1.055) ** 2.4)


def to_lab(pixels: Shaped[np.ndarray, "*dims 3"]) -> Float[np.ndarray, "*dims 3"]:
    """CIE Lab of sRGB values 0..255 (rounded to 8 bits): L in 0..100, a and b about -100..100."""
    levels = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    xyz = _LINEAR[levels] @ (_RGB_TO_XYZ / _WHITE[:, None]).T
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)
