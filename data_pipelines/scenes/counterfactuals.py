"""The same scene with one thing changed: exact before-and-after pairs for editing tasks.

Rendering both scenes gives two images that agree bit for bit outside `mask`.
"""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool

from data_pipelines.scenes import render
from data_pipelines.scenes.world import Scene, World

Kind = Literal["remove", "recolor", "reshape", "background"]
KINDS: tuple[Kind, ...] = ("remove", "recolor", "reshape", "background")


class Edit(NamedTuple):
    """A scene before and after; `target` is the edited object, None for the background. Reversed, a removal adds."""

    kind: Kind
    before: Scene
    after: Scene
    target: int | None


def remove(scene: Scene, index: int) -> Scene:
    """Without one object."""
    return scene._replace(objects=scene.objects[:index] + scene.objects[index + 1 :])


def replace(scene: Scene, index: int, *, shape: str | None = None, color: str | None = None) -> Scene:
    """With one object in another shape or colour (or both), where it was and as large as it was."""
    o = scene.objects[index]
    changed = o._replace(shape=shape or o.shape, color=color or o.color)
    return scene._replace(objects=(*scene.objects[:index], changed, *scene.objects[index + 1 :]))


def on_background(scene: Scene, name: str) -> Scene:
    """In front of another background."""
    return scene._replace(background=name)


def sample_edit(scene: Scene, world: World, rng: np.random.Generator) -> Edit:
    """An edit whose result is again a scene of the world, each possible kind as likely.

    Changed objects are training pairs, never held-out ones; the last object is never removed.
    """
    options: dict[Kind, list] = {kind: afters for kind in KINDS if (afters := _edits(kind, scene, world))}
    if not options:
        raise ValueError("This scene has no edit: the world has one background and one (shape, color) pair.")
    kind = list(options)[int(rng.random() * len(options))]
    target, after = options[kind][int(rng.random() * len(options[kind]))]
    return Edit(kind, scene, after, target)


def _edits(kind: Kind, scene: Scene, world: World) -> list[tuple[int | None, Scene]]:
    """Every edit of a kind: the edited object and the scene after it."""
    each = range(len(scene.objects))
    if kind == "background":
        return [(None, on_background(scene, name)) for name in world.backgrounds if name != scene.background]
    if kind == "remove":
        return [(i, remove(scene, i)) for i in each if len(scene.objects) > 1]
    names = world.colors if kind == "recolor" else world.shapes
    field = "color" if kind == "recolor" else "shape"
    afters = [(i, replace(scene, i, **{field: name})) for i in each for name in names]
    return [(i, after) for i, after in afters if _is_new(scene, after, i, world)]


def _is_new(before: Scene, after: Scene, index: int, world: World) -> bool:
    changed = after.objects[index]
    is_pair = (changed.shape, changed.color) in world.seen
    return is_pair and changed != before.objects[index] and world.fits(after.objects)


def mask(edit: Edit, image_size: int) -> Bool[np.ndarray, "h w"]:
    """The pixels in which the two images may differ."""
    if edit.target is None:
        covered = np.zeros((image_size, image_size))
        for o in edit.before.objects:
            covered = np.maximum(covered, render.alpha(o, image_size))
        return covered < 1
    out = render.alpha(edit.before.objects[edit.target], image_size) > 0
    if edit.kind != "remove":
        out |= render.alpha(edit.after.objects[edit.target], image_size) > 0
    return out
