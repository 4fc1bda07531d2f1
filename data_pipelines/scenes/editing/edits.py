"""Ground truth of the masked edits: add, replace, remove, outpaint.

Each is a counterfactual: two scenes that differ in what the task says, and a mask over every pixel that differs.
"""

import numpy as np
from jaxtyping import Bool

from data_pipelines.scenes import captions, mask_shapes, render, world
from data_pipelines.scenes.captions import Described
from data_pipelines.scenes.editing.truth import Truth
from data_pipelines.scenes.world import Object, Pairs, Scene, World
from nova_jax.evaluation import geneval


def sample_add(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """One of the scene's objects, of the given pairs, was not there before."""
    while True:
        scene = world.sample_scene(of, rng)
        index = world.pick(rng, range(len(scene.objects)))
        shape, color = world.pick(rng, pairs)
        after = _with(scene, index, shape, color)
        if of.fits(after.objects):
            break
    mask = mask_shapes.sample_mask(_touched(after.objects[index : index + 1], of.image_size), rng)
    return Truth(after, _describe(after, index, rng), _without(after, index), index, mask=mask)


def sample_replace(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """One object becomes another one of the given pairs, where it was and as large."""
    while True:
        before = world.sample_scene(of, rng)
        index = world.pick(rng, range(len(before.objects)))
        shape, color = world.pick(rng, pairs)
        after = _with(before, index, shape, color)
        if after != before and of.fits(after.objects):
            break
    changed = _touched((before.objects[index], after.objects[index]), of.image_size)
    return Truth(after, _describe(after, index, rng), before, index, mask=mask_shapes.sample_mask(changed, rng))


def sample_remove(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """One object goes, the last one too."""
    before = world.sample_scene(of, rng)
    index = world.pick(rng, range(len(before.objects)))
    mask = mask_shapes.sample_mask(_touched(before.objects[index : index + 1], of.image_size), rng)
    return Truth(_without(before, index), Described(""), before, index, mask=mask)


def sample_outpaint(of: World, rng: np.random.Generator, pairs: Pairs) -> Truth:
    """Some objects stay, the others go elsewhere, and where the mask follows the silhouettes the background may change.

    A silhouette is the pixels that its object covers wholly; with any other mask some background stays, and so its
    colour does.
    """
    before = world.sample_scene(of, rng)
    kept, others = _split(before.objects, rng)
    moved = world.rearrange(of, rng, others, around=kept)[: int(rng.random() * (len(others) + 1))]
    follows = rng.random() < 0.5
    background = world.pick(rng, of.backgrounds) if follows else before.background
    after = Scene(kept + moved, background)
    changed = _touched(others + moved, of.image_size)
    keep = _solid(kept, of.image_size) if follows else _surroundings(kept, changed, rng)
    is_new = True if background != before.background else None
    said = captions.describe(after, rng, color=True, background=is_new, wording=of.wording)
    return Truth(after, said, before, chosen=tuple(range(len(kept))), mask=~keep)


def _split(objects: tuple[Object, ...], rng: np.random.Generator) -> tuple[tuple[Object, ...], tuple[Object, ...]]:
    """The objects in two parts; the first has one or more."""
    shuffled = tuple(objects[i] for i in rng.permutation(len(objects)))
    count = 1 + int(rng.random() * len(objects))
    return shuffled[:count], shuffled[count:]


def _solid(objects: tuple[Object, ...], image_size: int) -> Bool[np.ndarray, "h w"]:
    """The pixels that objects cover wholly."""
    return render.coverage(objects, image_size) == 1


def _touched(objects: tuple[Object, ...], image_size: int) -> Bool[np.ndarray, "h w"]:
    """The pixels that objects change."""
    return render.coverage(objects, image_size) > 0


def _surroundings(
    kept: tuple[Object, ...], changed: Bool[np.ndarray, "h w"], rng: np.random.Generator
) -> Bool[np.ndarray, "h w"]:
    """The kept objects with what is around them, dilated or as a box: as wide as nothing changes there."""
    size = changed.shape[0]
    inner = _touched(kept, size)
    reach = int(rng.random() * size / 3)
    if rng.random() < 0.5:
        margins = tuple(int(rng.random() * (reach + 1)) for _ in range(4))
        wide = mask_shapes.box(inner, margins)
    else:
        wide = mask_shapes.dilated(inner, 1 + reach // 4)
    return inner if (wide & changed).any() else wide


def _describe(after: Scene, index: int, rng: np.random.Generator) -> Described:
    """Half of the time the object alone, as "a red circle", else the whole scene."""
    if rng.random() < 0.5:
        return captions.describe(after, rng, color=True)
    o = after.objects[index]
    size = rng.random() < 0.25
    return Described(geneval.phrase(o.shape, o.color, o.size if size else None), color=True, size=size)


def _without(scene: Scene, index: int) -> Scene:
    return scene._replace(objects=scene.objects[:index] + scene.objects[index + 1 :])


def _with(scene: Scene, index: int, shape: str, color: str) -> Scene:
    """One object in another shape and colour, where it was and as large as it was."""
    changed = scene.objects[index]._replace(shape=shape, color=color)
    return scene._replace(objects=(*scene.objects[:index], changed, *scene.objects[index + 1 :]))
