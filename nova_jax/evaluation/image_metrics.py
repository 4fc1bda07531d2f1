"""Metrics of images as arrays: masks, alpha, edges, colours, seams; and rank correlation.

    mask_iou          |a and b| / |a or b|
    alpha_error       mean |a - b|, the MAE of image matting
    edge_f1           2 P R / (P + R), where P and R are the shares of edge pixels with a partner within a tolerance
                      (after Martin, Fowlkes, Malik 2004, "Learning to detect natural image boundaries")
    psnr              10 log10(255^2 / mean squared error), in a mask or everywhere
    seam              mean |difference| of the neighbours across a mask's border
    delta_e2000       CIEDE2000 (Sharma, Wu, Dalal 2005, Color Research & Application 30, equations 2-22)
    palette_error     mean CIEDE2000 distance of each asked colour to the nearest area of an image
    rank_correlation  Spearman's rho: Pearson's correlation of the ranks

Masks and edge maps are boolean; images are 8-bit, or CIE Lab (D65) where colours are compared.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8
from scipy import ndimage

NO_AREA = 100.0  # palette_error of a colour in an image without any area; black to white is 100
FLAT = 10.0  # CIE 1976 distance to each of its four neighbours below which a pixel lies inside an area


def mask_iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union, 0..1; two empty masks agree."""
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 1.0


def alpha_error(a: Num[np.ndarray, "h w"], b: Num[np.ndarray, "h w"]) -> float:
    """Mean absolute difference of two mattes, both 0..1."""
    return float(np.abs(np.asarray(a, np.float64) - b).mean())


def edge_f1(found: Bool[np.ndarray, "h w"], true: Bool[np.ndarray, "h w"], tolerance: int = 1) -> float:
    """F1 of edge pixels, 0..1; a pixel counts where the other map has an edge within `tolerance` rows and columns.

    Two maps without edges agree. Unlike in the Berkeley benchmark several pixels may share a partner.
    """
    if not found.any() or not true.any():
        return float(not found.any() and not true.any())
    size = 2 * tolerance + 1
    near_true, near_found = (ndimage.maximum_filter(edges, size, mode="constant") for edges in (true, found))
    precision, recall = float(near_true[found].mean()), float(near_found[true].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def psnr(
    a: UInt8[np.ndarray, "*frames h w c"],
    b: UInt8[np.ndarray, "*frames h w c"],
    mask: Bool[np.ndarray, "h w"] | None = None,
) -> float:
    """Peak signal-to-noise ratio of 8-bit images in decibels, over the masked or all pixels; infinite where equal."""
    difference = a.astype(np.float64) - b
    difference = difference if mask is None else difference[..., mask, :]
    if difference.size == 0:
        raise ValueError("The mask is empty; give one with at least one pixel.")
    error = float((difference**2).mean())
    return 10 * math.log10(255**2 / error) if error else math.inf


def seam(image: UInt8[np.ndarray, "*frames h w c"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Mean absolute difference, in levels of 255, of neighbours of which the mask holds one; 0 without such.

    A visible seam is what an image has here above that of the true one.
    """
    levels = image.astype(np.float64)
    down = np.abs(levels[..., 1:, :, :] - levels[..., :-1, :, :])[..., mask[1:] != mask[:-1], :]
    across = np.abs(levels[..., 1:, :] - levels[..., :-1, :])[..., mask[:, 1:] != mask[:, :-1], :]
    jumps = np.concatenate([down.ravel(), across.ravel()])
    return float(jumps.mean()) if jumps.size else 0.0


def delta_e2000(a: Float[np.ndarray, "*#dims 3"], b: Float[np.ndarray, "*#dims 3"]) -> Float[np.ndarray, "*dims"]:
    """CIEDE2000 of arrays of CIE Lab colours, with kL = kC = kH = 1: about 1 is just visible, black to white is 100.

    Equation numbers are those of Sharma, Wu, Dalal 2005.
    """
    lightness_a, lightness_b = a[..., 0], b[..., 0]
    chroma = (np.hypot(a[..., 1], a[..., 2]) + np.hypot(b[..., 1], b[..., 2])) / 2  # (2), (3)
    stretch = 1.5 - 0.5 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7))  # 1 + G, (4)
    chroma_a, chroma_b = np.hypot(stretch * a[..., 1], a[..., 2]), np.hypot(stretch * b[..., 1], b[..., 2])  # (5), (6)
    hue_a, hue_b = (np.degrees(np.arctan2(c[..., 2], stretch * c[..., 1])) % 360 for c in (a, b))  # (7)
    is_gray = chroma_a * chroma_b == 0
    turn = np.where(is_gray, 0.0, (hue_b - hue_a + 180) % 360 - 180)  # (10)
    turn = np.where((turn == -180) & (hue_b > hue_a), 180.0, turn)
    hue_step = 2 * np.sqrt(chroma_a * chroma_b) * np.sin(np.radians(turn) / 2)  # (11)
    lightness, chroma = (lightness_a + lightness_b) / 2, (chroma_a + chroma_b) / 2  # (12), (13)
    hue = _mean_hue(hue_a, hue_b, is_gray)  # (14)
    weight = (
        1
        - 0.17 * np.cos(np.radians(hue - 30))
        + 0.24 * np.cos(np.radians(2 * hue))
        + 0.32 * np.cos(np.radians(3 * hue + 6))
        - 0.20 * np.cos(np.radians(4 * hue - 63))
    )  # T, (15)
    bend = np.sin(np.radians(60 * np.exp(-(((hue - 275) / 25) ** 2))))  # sin(2 delta theta), (16)
    rotation = -2 * np.sqrt(chroma**7 / (chroma**7 + 25.0**7)) * bend  # R_T, (17), (21)
    light = (lightness_b - lightness_a) / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    chromatic = (chroma_b - chroma_a) / (1 + 0.045 * chroma)  # (19)
    hued = hue_step / (1 + 0.015 * chroma * weight)  # (20)
    squared = light**2 + chromatic**2 + hued**2 + rotation * chromatic * hued  # (22)
    return np.sqrt(np.maximum(squared, 0.0))


def _mean_hue(
    a: Float[np.ndarray, "*#dims"], b: Float[np.ndarray, "*#dims"], is_gray: Bool[np.ndarray, "*#dims"]
) -> Float[np.ndarray, "*dims"]:
    """The mean of two hues in degrees on the shorter way round; their sum where one has no hue (equation 14)."""
    total = a + b
    is_far = np.abs(a - b) > 180
    mean = np.where(is_far, np.where(total < 360, total + 360, total - 360), total) / 2
    return np.where(is_gray, total, mean)


def palette_error(lab: Float[np.ndarray, "h w 3"], asked: Float[np.ndarray, "n 3"], area: float = 0.003) -> float:
    """Mean CIEDE2000 distance of each asked colour to the nearest area of an image; 0 where all are shown.

    Only pixels inside an area count: those within `FLAT` (CIE 1976) of their four neighbours, which leaves out the
    blended rims. The distance of a colour is the least within which a share `area` of the image lies; noise
    from pixel to pixel makes that a little too small.

    Args:
        lab: The image in CIE Lab.
        asked: The colours in CIE Lab.
        area: Share of the image that the inner pixels of a colour have to take. The default is a little less than
            what a thin ring in a crowd of six has.
    """
    inner = lab[is_flat(lab)]
    need = max(1, math.ceil(area * lab.shape[0] * lab.shape[1]))
    if len(inner) < need:
        return NO_AREA
    distances = delta_e2000(asked[:, None], inner[None])
    return float(np.partition(distances, need - 1, axis=1)[:, need - 1].mean())


def is_flat(lab: Float[np.ndarray, "h w 3"]) -> Bool[np.ndarray, "h w"]:
    """Whether a pixel is like its neighbours in the image, four at most."""
    flat = np.ones(lab.shape[:2], bool)
    down, across = (np.linalg.norm(np.diff(lab, axis=axis), axis=-1) < FLAT for axis in (0, 1))
    flat[1:] &= down
    flat[:-1] &= down
    flat[:, 1:] &= across
    flat[:, :-1] &= across
    return flat


def rank_correlation(a: Num[np.ndarray, " n"], b: Num[np.ndarray, " n"]) -> float:
    """Spearman's rank correlation, -1..1; ties share their mean rank. Not a number where one side is constant.

    Raises:
        ValueError: Fewer than two pairs.
    """
    if len(a) < 2:
        raise ValueError(f"A rank correlation needs two pairs or more; given {len(a)}.")
    x, y = (_ranks(values) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / scale if scale else math.nan


def _ranks(values: Num[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The rank of every value, 1 for the least; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]
