"""All that is known about one element of an image-editing data set; its images are renders of this."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from data_pipelines.scenes.captions import Described
from data_pipelines.scenes.world import Pairs, Scene, World


class Truth(NamedTuple):
    """The ground truth of an element; what its task does not have is empty.

    Attributes:
        after: The scene of the image to draw (segment, matte: the scene the mask and the matte belong to).
        said: The caption, and what it says of `after`.
        before: The scene of the source or control image.
        edited: The object added or replaced, counted in `after`; the object removed, counted in `before`.
        chosen: The objects of `after` that are kept (outpaint) or that the caption means (segment).
        mask: What is to be drawn anew.
        references: The scenes of the reference images.
        similarity: How much of the first reference's layout is kept, 0.2 to 1.
        palette: The colours asked for, as "#rrggbb".
        bands: The background's colours from top to bottom, where it has several.
        labels: The colours of the objects in a segmentation image.
        mode: Which control image: an index into `drawing.MODES`.
        is_canny: Whether the edges are Canny's instead of exact.
    """

    after: Scene
    said: Described
    before: Scene | None = None
    edited: int | None = None
    chosen: tuple[int, ...] = ()
    mask: Bool[np.ndarray, "h w"] | None = None
    references: tuple[Scene, ...] = ()
    similarity: float = 1.0
    palette: tuple[str, ...] = ()
    bands: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    mode: int = 0
    is_canny: bool = False


Sampler = Callable[[World, np.random.Generator, Pairs], Truth]  # the pairs are for what the caption asks to draw
