"""Referring expressions: read back from their words, they mean what they should and nothing else."""

import re

import numpy as np
import pytest

from data_pipelines.scenes import outlines, palette, referring, source, world
from nova_jax.evaluation import geneval

COUNT = 400


def read(words, scene):
    """The objects that fit a noun phrase such as "small red circle" or "red objects"."""
    fitting = []
    for i, o in enumerate(scene.objects):
        attributes = {o.shape, o.shape + "s", o.shape + "es", o.color, o.size, "object", "objects"}
        if set(words) <= attributes:
            fitting.append(i)
    return fitting


def meant(text, scene):
    """The objects a phrase means, by its words alone."""
    relation = next((r for r in geneval.RELATIONS if f" {r} the " in text), None)
    if relation is None:
        return read(text.split()[1:], scene)
    subject, anchor = (part.split() for part in text.removeprefix("the ").split(f" {relation} the "))
    found = world.truth(scene)
    pairs = [(i, j) for i in read(subject, scene) for j in read(anchor, scene) if i != j]
    return [i for i, j in pairs if relation in geneval.relations(found[i], found[j])]


@pytest.fixture(scope="module", params=[world.CANVAS_32, world.CANVAS_64], ids=["32", "64"])
def referrals(request):
    scenes, rng = source.Scenes(request.param, seed=2), np.random.default_rng(0)
    drawn = [scenes.scene(i) for i in range(COUNT)]
    return [(scene, *referring.sample_referral(scene, request.param, rng)) for scene in drawn]


def test_phrases_mean_the_chosen_objects_and_nothing_else(referrals):
    for scene, referral, chosen in referrals:
        assert tuple(meant(referral.text, scene)) == chosen, referral.text


def test_phrases_in_the_singular_mean_one_object_or_none(referrals):
    for _, referral, chosen in referrals:
        assert referral.is_plural or len(chosen) <= 1, referral.text


def test_a_tenth_of_the_phrases_mean_nothing(referrals):
    assert 0.06 < sum(not chosen for _, _, chosen in referrals) / COUNT < 0.15


def test_every_form_appears(referrals):
    kinds = "|".join((*outlines.SHAPES, "object"))
    noun = rf"(?:(?:small|large) )?(?:(?:{'|'.join(palette.COLORS)}) )?(?:{kinds})(?:es|s)?"
    forms = {
        "all": rf"all {noun}",
        "one": rf"the {noun}",
        "related": rf"the {noun} (?:{'|'.join(geneval.RELATIONS)}) the {noun}",
    }
    counts = {name: sum(bool(re.fullmatch(f, r.text)) for _, r, _ in referrals) for name, f in forms.items()}
    assert sum(counts.values()) == COUNT
    assert min(counts.values()) > 0.08 * COUNT
