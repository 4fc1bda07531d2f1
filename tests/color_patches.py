"""A frame of coloured patches, and its luma and chroma by the definitions of BT.601 and BT.709, for tests of videos."""

import numpy as np

COLORS = np.array(
    [
        [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)],
        [(255, 0, 255), (0, 255, 255), (255, 255, 255), (0, 0, 0)],
        [(128, 128, 128), (200, 120, 40), (30, 90, 180), (90, 160, 60)],
    ],
    np.uint8,
)
SIDE = 16  # pixels of a patch: chroma at half the resolution and the codec's blocks stay inside
WEIGHTS = {"BT.601": (0.299, 0.114), "BT.709": (0.2126, 0.0722)}  # of red and blue in luma
MATRIX = {"BT.601": 6, "BT.709": 1}  # as H.264 and VP9 number them (ITU-T H.273, table 4)
LIMITED, FULL = 1, 2


def frame():
    """The patches as pixels, uint8 (48, 64, 3)."""
    return COLORS.repeat(SIDE, 0).repeat(SIDE, 1)


def centres(pixels, side=SIDE):
    """The pixel in the middle of each patch of `side` pixels, as whole numbers that may be subtracted."""
    return pixels[side // 2 :: side, side // 2 :: side].astype(int)


def to_yuv(rgb, matrix, color_range=LIMITED):
    """Luma and chroma of 8-bit RGB, float, 0 to 255 (ITU-T H.273, equations 38 to 43 and 24 to 29)."""
    r, g, b = np.moveaxis(rgb / 255, -1, 0)
    red, blue = WEIGHTS[matrix]
    y = red * r + (1 - red - blue) * g + blue * b
    u, v = (b - y) / (2 - 2 * blue), (r - y) / (2 - 2 * red)
    if color_range == FULL:
        return np.stack([255 * y, 128 + 255 * u, 128 + 255 * v], -1)
    return np.stack([16 + 219 * y, 128 + 224 * u, 128 + 224 * v], -1)


def planes(matrix, color_range=LIMITED):
    """The frame as 4:2:0, as PyAV takes it: uint8 (72, 64), luma above both chromas."""
    yuv = np.clip(np.rint(to_yuv(frame(), matrix, color_range)), 0, 255).astype(np.uint8)
    whole, half, width = yuv[..., 0], yuv[::2, ::2], yuv.shape[1]
    return np.concatenate([whole, half[..., 1].reshape(-1, width), half[..., 2].reshape(-1, width)])
