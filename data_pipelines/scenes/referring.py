"""Referring expressions: phrases that single out objects of a scene, and phrases that nothing in it fits.

    one by attributes    "the red circle", "the small triangle"           exactly one object fits
    one by a relation    "the circle left of the red square"              exactly one pair fits
    all of a kind        "all red objects", "all circles"                 one object or more fit
    none                 any of these forms, and no object fits

Relations are GenEval's (`nova_jax.evaluation.geneval.relations`).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.scenes import world
from data_pipelines.scenes.world import Object, Scene, World
from nova_jax.evaluation import geneval

SIZES = ("small", "large")


class Kind(NamedTuple):
    """What a phrase says of an object; None is not said."""

    shape: str | None = None
    color: str | None = None
    size: str | None = None

    def fits(self, o: Object) -> bool:
        """Whether all that is said is true of the object."""
        pairs = zip(self, (o.shape, o.color, o.size), strict=True)
        return all(said in (None, true) for said, true in pairs)

    @property
    def name(self) -> str:
        """Such as "small red circle"; "object" where no shape is said."""
        return " ".join(word for word in (self.size, self.color, self.shape or "object") if word)


class Referral(NamedTuple):
    """A phrase: all objects of a kind, or the one of it (in a relation to the one of another kind)."""

    kind: Kind
    is_plural: bool = False
    relation: str | None = None
    anchor: Kind = Kind()

    @property
    def text(self) -> str:
        """Such as "all red circles" or "the circle left of the square"."""
        name = self.kind.name
        if self.is_plural:
            return f"all {name}{'es' if name.endswith('s') else 's'}"
        return f"the {name} {self.relation} the {self.anchor.name}" if self.relation else f"the {name}"


def resolve(referral: Referral, scene: Scene) -> tuple[int, ...]:
    """The objects of the scene that the phrase fits; a phrase in the singular is clear where that is one."""
    fitting = [i for i, o in enumerate(scene.objects) if referral.kind.fits(o)]
    if referral.relation is None:
        return tuple(fitting)
    found = world.truth(scene)
    anchors = [j for j, o in enumerate(scene.objects) if referral.anchor.fits(o)]
    pairs = [
        i for i in fitting for j in anchors if i != j and referral.relation in geneval.relations(found[i], found[j])
    ]
    return tuple(pairs)  # an object that two anchors fit is there twice: not clear


def sample_referral(
    scene: Scene, of: World, rng: np.random.Generator, absent: float = 0.1
) -> tuple[Referral, tuple[int, ...]]:
    """A clear phrase and the objects it means; a share `absent` of the phrases means none.

    Args:
        scene: One object or more.
        of: Whose words to use.
        rng: Chooses the phrase.
        absent: The share of phrases that nothing in the scene fits.
    """
    wants_none, form = rng.random() < absent, _form(len(scene.objects), rng)
    for _ in range(100):
        pool = [Object(*world.pick(rng, of.seen), world.pick(rng, SIZES), 0, 0, 0)] if wants_none else scene.objects
        referral = _phrase(form, pool, scene.objects, rng)
        objects = resolve(referral, scene)
        if len(objects) == 0 if wants_none else len(objects) == 1 or (referral.is_plural and objects):
            return referral, objects
    referral = Referral(Kind(*scene.objects[0][:3]), is_plural=True)  # as where all objects are called the same
    return referral, resolve(referral, scene)


def _form(count: int, rng: np.random.Generator) -> str:
    """One of the forms that a scene of `count` objects allows."""
    u = rng.random()
    return "all" if u < 0.25 else "related" if u < 0.6 and count > 1 else "one"


def _phrase(form: str, pool: Sequence[Object], others: Sequence[Object], rng: np.random.Generator) -> Referral:
    """A phrase of a form about one of a pool, which may fit nothing or too much."""
    kind = _kind(world.pick(rng, pool), rng)
    if form == "related":
        return Referral(kind, False, world.pick(rng, geneval.RELATIONS), _kind(world.pick(rng, others), rng))
    return Referral(kind, is_plural=form == "all")


def _kind(o: Object, rng: np.random.Generator) -> Kind:
    """Some of an object's attributes: its shape or its colour, mostly both, at times its size."""
    u = rng.random()
    size = o.size if rng.random() < 0.25 else None
    return Kind(o.shape if u < 0.8 else None, o.color if u > 0.3 else None, size)
