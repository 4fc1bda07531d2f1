"""The images and numbers of an editing element, drawn from its ground truth."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from data_pipelines.scenes import palette, render, world
from data_pipelines.scenes.editing import palettes
from data_pipelines.scenes.editing.truth import Truth
from data_pipelines.scenes.world import Scene
from nova_jax.tasks import conditions

MODES = ("edges", "segmentation")  # of the control image

Element = dict[str, Any]  # `pixels`, `caption`, and the parts of its task


def draw(truth: Truth, task: str, image_size: int) -> Element:
    """All parts of an element."""
    element: Element = {"pixels": target(truth, task, image_size)[None], "caption": truth.said.text}
    for part in PARTS[task]:
        element |= part(truth, image_size)
    return element


def draw_one(truth: Truth, task: str, image_size: int, rng: np.random.Generator) -> UInt8[np.ndarray, "1 h w 3"]:
    """One of the element's images: target, source, masked source, mask, control, or a reference."""
    element = draw(truth, task, image_size)
    images = [element[key] for key in ("pixels", "source", "control") if key in element]
    if "mask" in element:
        images += [conditions.hide(element["source"], element["mask"]), gray_image(element["mask"])[None]]
    images += [image[None] for image in element.get("references", ())[: element.get("num_references", 0)]]
    return world.pick(rng, images)


def target(truth: Truth, task: str, image_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The image to draw."""
    if task == "segment":
        return gray_image(meant(truth, image_size))
    if task == "matte":
        return gray_image(render.coverage(truth.after.objects, image_size))
    if task == "colors":
        return render.over(palettes.banded(truth.bands, image_size), truth.after.objects)
    return render.render(truth.after, image_size)


def meant(truth: Truth, image_size: int) -> Bool[np.ndarray, "h w"]:
    """The pixels of the chosen objects."""
    chosen = truth.after._replace(objects=tuple(truth.after.objects[i] for i in truth.chosen))
    return np.logical_or.reduce(render.masks(chosen, image_size), axis=0)


def gray_image(levels: Bool[np.ndarray, "h w"] | Float32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Values 0..1 from black to white."""
    return np.repeat(np.rint(255 * levels).astype(np.uint8)[..., None], 3, axis=-1)


def edge_image(truth: Truth, image_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The outlines of the source, white on black: exact, or where Canny's detector finds them."""
    assert truth.before is not None
    find = canny if truth.is_canny else render.edges
    return gray_image(find(truth.before, image_size))


def canny(scene: Scene, image_size: int) -> Bool[np.ndarray, "h w"]:
    """The edges that Canny's detector finds in the image."""
    return conditions.canny(render.render(scene, image_size))[..., 0] > 0


def segmentation_image(truth: Truth, image_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """The source's objects in flat label colours on black."""
    assert truth.before is not None
    table = np.array([(0, 0, 0), *(palette.rgb(label) for label in truth.labels)], np.uint8)
    return table[render.segmentation(truth.before, image_size)]


def _source(truth: Truth, image_size: int) -> Element:
    assert truth.before is not None
    return {"source": render.render(truth.before, image_size)[None]}


def _mask(truth: Truth, image_size: int) -> Element:
    return {"mask": truth.mask}


def _control(truth: Truth, image_size: int) -> Element:
    image = (edge_image, segmentation_image)[truth.mode](truth, image_size)
    return {"control": image[None], "mode": truth.mode}


def _references(truth: Truth, image_size: int) -> Element:
    images = np.full((conditions.MAX_REFERENCES, image_size, image_size, 3), conditions.GRAY, np.uint8)
    for image, scene in zip(images, truth.references, strict=False):
        image[:] = render.render(scene, image_size)
    return {"references": images, "num_references": len(truth.references), "similarity": truth.similarity}


def _palette(truth: Truth, image_size: int) -> Element:
    table = np.zeros((conditions.MAX_COLORS, 3), np.uint8)
    table[: len(truth.palette)] = [palette.rgb(name) for name in truth.palette]
    return {"palette": table, "num_colors": len(truth.palette)}


# What an element has beside `pixels` and `caption`.
PARTS: dict[str, tuple[Callable[[Truth, int], Element], ...]] = {
    "generate": (),
    "add": (_source, _mask),
    "replace": (_source, _mask),
    "remove": (_source, _mask),
    "outpaint": (_source, _mask),
    "segment": (_source,),
    "matte": (_source,),
    "vary": (_references,),
    "structure": (_control,),
    "colors": (_palette, _references),
}
