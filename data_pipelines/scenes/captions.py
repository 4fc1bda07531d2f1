"""Captions: a small grammar with paraphrases. Every caption is true of its scene and names every object.

The plain forms are those of the evaluation's prompts (`nova_jax.evaluation.geneval`): "a circle", "a red circle",
"a circle and a square", "three circles", "a circle left of a square", "a red circle and a blue square". A relation is
only said where GenEval's own rule finds it. A colour or a size is said of all objects or of none.
"""

import collections

import numpy as np

from data_pipelines.scenes import world
from data_pipelines.scenes.world import Object, Scene
from nova_jax.evaluation import geneval

MAX_LENGTH = 64  # of a caption of one or two objects
MAX_LENGTH_MANY = 96  # of three or more

_RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the scene's captions."""
    count = len(scene.objects)
    if count == 1:
        core = _single(scene.objects[0], rng)
    elif count == 2 and rng.random() < 0.5 and (related := _relation(scene, rng)):
        core = related
    else:
        core = _list(scene.objects, rng)
    limit = MAX_LENGTH if count <= 2 else MAX_LENGTH_MANY
    place = world.pick(rng, (f" on a {scene.background} background", f" on {scene.background}"))
    if rng.random() < 0.3 and len(core) + len(place) <= limit:
        core += place
    return core


def _single(o: Object, rng: np.random.Generator) -> str:
    color, size = _detail(rng)
    phrase = geneval.phrase(o.shape, o.color if color else None, o.size if size else None)
    form = world.pick(rng, ("{}", "{}", "{}", "there is {}", "one"))
    return f"one {phrase.split(' ', 1)[1]}" if form == "one" else form.format(phrase)


def _detail(rng: np.random.Generator) -> tuple[bool, bool]:
    """Whether to say the colour and the size."""
    color = rng.random() < 0.75
    return color, rng.random() < (0.3 if color else 0.15)


def _relation(scene: Scene, rng: np.random.Generator) -> str | None:
    """Two objects and how one lies to the other; None where no relation holds or the two would be called the same."""
    order = (0, 1) if rng.random() < 0.5 else (1, 0)
    a, b = (scene.objects[i] for i in order)
    color, size = _detail(rng)
    first, second = (geneval.phrase(o.shape, o.color if color else None, o.size if size else None) for o in (a, b))
    found = [world.truth(scene)[i] for i in order]
    relations = sorted(geneval.relations(*found))
    if first == second or not relations:
        return None
    return f"{first} {world.pick(rng, _RELATIONS[world.pick(rng, relations)])} {second}"


def _list(objects: tuple[Object, ...], rng: np.random.Generator) -> str:
    """All objects, those that would be called the same counted together."""
    color, size = _detail(rng)
    shuffled = [objects[i] for i in rng.permutation(len(objects))]
    # A size said of many objects is a long way to say little; only pairs get one.
    listed = _enumerate(shuffled, color, size and len(objects) == 2)
    if len(listed) > MAX_LENGTH_MANY:
        listed = _enumerate(shuffled, False, False)
    if rng.random() < 0.15 and len(listed) <= MAX_LENGTH - len("there are "):
        many = listed.startswith(geneval.NUMBERS[1:])
        return f"there {'are' if many else 'is'} {listed}"
    return listed


def _enumerate(objects: list[Object], color: bool, size: bool) -> str:
    """Such as "two red circles, a blue square and a green triangle"."""
    counts = collections.Counter((o.shape, o.color if color else None, o.size if size else None) for o in objects)
    phrases = [geneval.phrase(*name, count=count) for name, count in counts.items()]
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]
