"""Captions: a small grammar with paraphrases. Every caption is true of its scene and names every object.

The plain forms are those of the evaluation's prompts (`nova_jax.evaluation.geneval`): "a circle", "a red circle",
"a circle and a square", "three circles", "a circle left of a square", "a red circle and a blue square". A relation is
only said where GenEval's own rule finds it. A colour or a size is said of all objects or of none.
"""

import collections
from typing import NamedTuple

import numpy as np

from data_pipelines.scenes import world
from data_pipelines.scenes.world import Object, Scene, Wording
from nova_jax.evaluation import geneval

MAX_LENGTH = 64  # of a caption of one or two objects
MAX_LENGTH_MANY = 96  # of three or more, or where the background has to be said

_RELATIONS = {
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}


class Described(NamedTuple):
    """A caption and what it says: the colours, the sizes, the background; `relation` is of object i to object j."""

    text: str
    color: bool = False
    size: bool = False
    background: bool = False
    relation: tuple[int, int, str] | None = None


def caption(scene: Scene, rng: np.random.Generator, wording: Wording = Wording()) -> str:
    """One of the scene's captions."""
    return describe(scene, rng, wording=wording).text


def describe(
    scene: Scene,
    rng: np.random.Generator,
    *,
    color: bool | None = None,
    background: bool | None = None,
    wording: Wording = Wording(),
) -> Described:
    """One of the scene's captions with what it says of the scene.

    Args:
        scene: One object or more.
        rng: Chooses the form.
        color: Whether to say the colours (which six long names may not leave room for); None: as `wording` has it.
        background: Whether to say the background, where there is room; None: sometimes.
        wording: How often captions say what is left to chance.
    """
    count = len(scene.objects)
    if count == 1:
        core = _single(scene.objects[0], rng, color, wording)
    elif count == 2 and rng.random() < wording.relation and (related := _relation(scene, rng, color, wording)):
        core = related
    else:
        core = _list(scene.objects, rng, color, wording)
    limit = MAX_LENGTH if count <= 2 and background is None else MAX_LENGTH_MANY
    place = " " + place_phrase(scene.background, rng)
    wanted = rng.random() < 0.3 if background is None else background
    if wanted and len(core.text) + len(place) <= limit:
        return core._replace(text=core.text + place, background=True)
    return core


def place_phrase(background: str, rng: np.random.Generator) -> str:
    """Such as "on black"."""
    return world.pick(rng, (f"on a {background} background", f"on {background}"))


def _single(o: Object, rng: np.random.Generator, said: bool | None, wording: Wording) -> Described:
    color, size = _detail(rng, said, wording)
    phrase = geneval.phrase(o.shape, o.color if color else None, o.size if size else None)
    form = world.pick(rng, ("{}", "{}", "{}", "there is {}", "one"))
    text = f"one {phrase.split(' ', 1)[1]}" if form == "one" else form.format(phrase)
    return Described(text, color, size)


def _detail(rng: np.random.Generator, said: bool | None, wording: Wording) -> tuple[bool, bool]:
    """Whether to say the colour (unless that is settled) and the size."""
    color = rng.random() < wording.color if said is None else said
    return color, rng.random() < (0.3 if color else 0.15)


def _relation(scene: Scene, rng: np.random.Generator, said: bool | None, wording: Wording) -> Described | None:
    """Two objects and how one lies to the other; None where no relation holds or the two would be called the same."""
    order = (0, 1) if rng.random() < 0.5 else (1, 0)
    a, b = (scene.objects[i] for i in order)
    color, size = _detail(rng, said, wording)
    first, second = (geneval.phrase(o.shape, o.color if color else None, o.size if size else None) for o in (a, b))
    found = [world.truth(scene)[i] for i in order]
    relations = sorted(geneval.relations(*found))
    if first == second or not relations:
        return None
    relation = world.pick(rng, relations)
    text = f"{first} {world.pick(rng, _RELATIONS[relation])} {second}"
    return Described(text, color, size, relation=(order[0], order[1], relation))


def _list(objects: tuple[Object, ...], rng: np.random.Generator, said: bool | None, wording: Wording) -> Described:
    """All objects, those that would be called the same counted together."""
    color, size = _detail(rng, said, wording)
    named = [objects[i] for i in rng.permutation(len(objects))]
    if (
        wording.in_order and rng.random() < wording.in_order
    ):  # no draw at 0: scenes of earlier versions stay as they were
        named = sorted(objects, key=lambda o: o.x)
    # A size said of many objects is a long way to say little; only pairs get one.
    size = size and len(objects) == 2
    listed = _enumerate(named, color, size)
    if len(listed) > MAX_LENGTH_MANY:
        color = size = False
        listed = _enumerate(named, color, size)
    if rng.random() < 0.15 and len(listed) <= MAX_LENGTH - len("there are "):
        many = listed.startswith(geneval.NUMBERS[1:])
        listed = f"there {'are' if many else 'is'} {listed}"
    return Described(listed, color, size)


def _enumerate(objects: list[Object], color: bool, size: bool) -> str:
    """Such as "two red circles, a blue square and a green triangle"."""
    counts = collections.Counter((o.shape, o.color if color else None, o.size if size else None) for o in objects)
    phrases = [geneval.phrase(*name, count=count) for name, count in counts.items()]
    return " and ".join([", ".join(phrases[:-1]), phrases[-1]]) if len(phrases) > 1 else phrases[0]
