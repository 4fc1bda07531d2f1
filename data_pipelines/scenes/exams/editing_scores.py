"""What images of the editing tasks are worth, held against the ground truth of their elements.

    task          scores
    generate      correct: all that the caption says; shapes: as many of each as there should be
    add, replace  correct: one object in the mask, of the right shape and colour; kept; outside
    remove        correct: the other objects alone; absent: no object in the mask; kept; psnr in the mask; outside
    outpaint      correct: all that the caption says; kept; seam: the jump at the mask's border above that of the truth
    segment       iou and hit (iou 0.5 or more) of phrases that mean something; empty: black for those that do not
    matte         error: mean absolute, of 1; kept: every object is mostly opaque; clear: and all else mostly not
    vary          correct: the cast's shapes and colours, one to one; said: what the caption says; copied: a reference
    structure     correct: all that the caption says; edge_f1 and iou with the control's layout
    colors        palette_error: mean CIEDE2000 of each colour to the nearest area; correct: the shapes

`kept` is that the objects which should stay are where they were; `outside` the mean absolute change outside the mask,
in levels of 255. Rates carry Wilson intervals, means Student's. What does not apply to an element is left out.

A score says most between two others: its ceiling, the score of an autoencoder's reconstructions of the true images,
and its chance, the score of images sampled for other elements (`compare`).
"""

import collections
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from scipy import ndimage

from data_pipelines.scenes import palette, parser, render
from data_pipelines.scenes.captions import Described
from data_pipelines.scenes.editing import drawing
from data_pipelines.scenes.editing.elements import Elements
from data_pipelines.scenes.editing.truth import Truth
from data_pipelines.scenes.world import Object, Scene, World
from nova_jax.evaluation import geneval, image_metrics, intervals
from nova_jax.evaluation.geneval import Detected

NEAR = 0.06  # how far from its place an object that stays may be found; less than the smallest radius
MAX_PSNR = 60.0  # that of images which agree; an error of rounding alone has 59
EMPTY = 0.01  # share of white pixels below which a segmentation shows nothing
COPY = 2.0  # mean absolute difference, in levels of 255, below which an image is a copy of another
ALIKE = 0.8  # similarity from which an image may be a copy

RGBImage = UInt8[np.ndarray, "1 h w 3"]
Judged = dict[str, bool | float | None]  # None does not apply
Scores = dict[str, dict[str, float]]  # name -> {value, low, high, n}


def score(scenes: Elements, samples: UInt8[np.ndarray, "n 1 h w 3"], indices: Sequence[int] | None = None) -> Scores:
    """Scores of images sampled for elements of a source.

    Args:
        scenes: Where the elements come from.
        samples: One image per element.
        indices: The elements; None: the first ones.
    """
    judged = judge(scenes, samples, indices)
    return {name: summary for name in judged[0] if (summary := intervals.summarize([j[name] for j in judged]))}


def judge(
    scenes: Elements, samples: UInt8[np.ndarray, "n 1 h w 3"], indices: Sequence[int] | None = None
) -> list[Judged]:
    """The scores of every image; see `score`."""
    each = range(len(samples)) if indices is None else indices
    rule = JUDGES[scenes.task]
    return [rule(scenes.truth(i), image, scenes.world) for i, image in zip(each, samples, strict=True)]


def compare(
    scenes: Elements,
    samples: UInt8[np.ndarray, "n 1 h w 3"],
    reconstructions: UInt8[np.ndarray, "n 1 h w 3"],
    indices: Sequence[int] | None = None,
) -> dict[str, Scores]:
    """Scores of images as "model", between "ceiling" and "chance".

    Args:
        scenes: Where the elements come from.
        samples: One image per element.
        reconstructions: The true images as the model's autoencoder returns them.
        indices: The elements; None: the first ones.
    """
    unrelated = np.roll(samples, 1, axis=0)
    sets = {"ceiling": reconstructions, "model": samples, "chance": unrelated}
    return {name: score(scenes, shown, indices) for name, shown in sets.items()}


def judge_generate(truth: Truth, image: RGBImage, world: World) -> Judged:
    """What the caption says, and the shapes alone."""
    found = parser.parse(image, world)
    return {
        "correct": _is_true(truth.said, truth.after, image, world),
        "shapes": _same(found, truth.after.objects, 1),
    }


def judge_filled(truth: Truth, image: RGBImage, world: World) -> Judged:
    """add, replace: the object in the mask, and what is around it."""
    assert truth.edited is not None
    o = truth.after.objects[truth.edited]
    inside, outside = _split(parser.parse(image, world), truth)
    others = [other for i, other in enumerate(truth.after.objects) if i != truth.edited]
    return {
        "correct": [d[:2] for d in inside] == [o[:2]],
        "kept": _are_kept(outside, others) if others else None,
        "outside": _change(truth, image),
    }


def judge_remove(truth: Truth, image: RGBImage, world: World) -> Judged:
    """The object is gone, and what is left is what was there."""
    assert truth.mask is not None
    inside, outside = _split(parser.parse(image, world), truth)
    others = truth.after.objects
    true = drawing.target(truth, "remove", world.image_size)[None]
    return {
        "correct": not inside and _same(outside, others, 2) and _are_kept(outside, others),
        "absent": not inside,
        "kept": _are_kept(outside, others) if others else None,
        "psnr": min(image_metrics.psnr(image, true, truth.mask), MAX_PSNR),
        "outside": _change(truth, image),
    }


def judge_outpaint(truth: Truth, image: RGBImage, world: World) -> Judged:
    """The caption, the kept objects, and the seam."""
    assert truth.mask is not None
    true = render.render(truth.after, world.image_size)
    return {
        "correct": _is_true(truth.said, truth.after, image, world),
        "kept": _are_kept(parser.parse(image, world), [truth.after.objects[i] for i in truth.chosen]),
        "seam": image_metrics.seam(image, truth.mask) - image_metrics.seam(true, truth.mask),
    }


def judge_segment(truth: Truth, image: RGBImage, world: World) -> Judged:
    """The mask, brighter than mid gray, against the exact one."""
    predicted = image[0].mean(axis=-1) > 127.5
    if not truth.chosen:
        return {"iou": None, "hit": None, "empty": bool(predicted.mean() < EMPTY)}
    iou = image_metrics.mask_iou(predicted, drawing.meant(truth, world.image_size))
    return {"iou": iou, "hit": iou >= 0.5, "empty": None}


def judge_matte(truth: Truth, image: RGBImage, world: World) -> Judged:
    """The gray levels against the exact coverage."""
    predicted = image[0].mean(axis=-1) / 255
    masks = render.masks(truth.after, world.image_size)
    true = render.coverage(truth.after.objects, world.image_size)
    kept = all(predicted[mask].mean() > 0.5 for mask in masks)
    return {
        "error": image_metrics.alpha_error(predicted, true),
        "kept": kept,
        "clear": kept and bool(predicted[true == 0].mean() < 0.1),
    }


def judge_vary(truth: Truth, image: RGBImage, world: World) -> Judged:
    """The cast, the caption, and whether the layout is new where it should be."""
    references = (render.render(scene, world.image_size).astype(np.float64) for scene in truth.references)
    return {
        "correct": _same(parser.parse(image, world), truth.after.objects, 2),
        "said": _is_true(truth.said, truth.after, image, world) if truth.said.text else None,
        "copied": any(bool(np.abs(image[0] - reference).mean() < COPY) for reference in references)
        if truth.similarity < ALIKE
        else None,
    }


def judge_structure(truth: Truth, image: RGBImage, world: World) -> Judged:
    """The caption, and the layout: the rims of what differs from the background against the exact outlines."""
    shown = parser.foreground(image, world)
    rims = shown & ~np.asarray(ndimage.binary_erosion(shown), bool)
    layout = np.logical_or.reduce(render.masks(truth.after, world.image_size), axis=0)
    return {
        "correct": _is_true(truth.said, truth.after, image, world),
        "edge_f1": image_metrics.edge_f1(rims, render.edges(truth.after, world.image_size)),
        "iou": image_metrics.mask_iou(shown, layout),
    }


def judge_colors(truth: Truth, image: RGBImage, world: World) -> Judged:
    """The palette and the shapes."""
    error = image_metrics.palette_error(palette.to_lab(image[0]), palette.table(truth.palette))
    return {
        "palette_error": error,
        "correct": _same(parser.parse_banded(image, world), truth.after.objects, 1),
    }


JUDGES: dict[str, Callable[[Truth, RGBImage, World], Judged]] = {
    "generate": judge_generate,
    "add": judge_filled,
    "replace": judge_filled,
    "remove": judge_remove,
    "outpaint": judge_outpaint,
    "segment": judge_segment,
    "matte": judge_matte,
    "vary": judge_vary,
    "structure": judge_structure,
    "colors": judge_colors,
}


def _is_true(said: Described, scene: Scene, image: RGBImage, world: World) -> bool:
    """Whether the image shows all that a caption says of its scene, and no object more."""

    def name(o: Object | Detected) -> tuple[str, str | None, str | None]:
        return o.shape, o.color if said.color else None, o.size if said.size else None

    found = parser.parse(image, world)
    names_objects = said.text and not said.text.startswith("on ")
    if names_objects and collections.Counter(map(name, found)) != collections.Counter(map(name, scene.objects)):
        return False
    if said.background and parser.background(image, world) != scene.background:
        return False
    if said.relation is None:
        return True
    i, j, relation = said.relation
    first, second = (next(d for d in found if name(d) == name(scene.objects[k])) for k in (i, j))
    return relation in geneval.relations(first, second)


def _same(found: Sequence[Detected], objects: Sequence[Object], words: int) -> bool:
    """Whether both are the same shapes (one word) or shapes and colours (two), one to one."""
    return collections.Counter(d[:words] for d in found) == collections.Counter(o[:words] for o in objects)


def _are_kept(found: Sequence[Detected], objects: Sequence[Object]) -> bool:
    """Whether each object is found in its shape and colour where it was."""
    return all(any(d[:2] == o[:2] and np.hypot(d.x - o.x, d.y - o.y) < NEAR for d in found) for o in objects)


def _split(found: Sequence[Detected], truth: Truth) -> tuple[list[Detected], list[Detected]]:
    """The objects whose centre lies inside the mask, its holes filled, and the others."""
    assert truth.mask is not None
    filled: Bool[np.ndarray, "h w"] = np.asarray(ndimage.binary_fill_holes(truth.mask), bool)
    height, width = filled.shape
    is_inside = [bool(filled[min(int(d.y * height), height - 1), min(int(d.x * width), width - 1)]) for d in found]
    inside = [d for d, true in zip(found, is_inside, strict=True) if true]
    return inside, [d for d, true in zip(found, is_inside, strict=True) if not true]


def _change(truth: Truth, image: RGBImage) -> float | None:
    """Mean absolute difference from the source outside the mask, in levels of 255."""
    assert truth.before is not None
    assert truth.mask is not None
    before = render.render(truth.before, image.shape[1])
    outside = ~truth.mask
    return float(np.abs(image[0][outside].astype(np.float64) - before[outside]).mean()) if outside.any() else None
