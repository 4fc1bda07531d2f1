import collections
import re

import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.scenes import captions, outlines, palette, world
from data_pipelines.scenes.world import Object, Scene
from nova_jax.evaluation import geneval

NUMBERS = {"a": 1, "an": 1, **{word: i + 1 for i, word in enumerate(geneval.NUMBERS)}}
WAYS = {"to the left of": "left of", "to the right of": "right of", "over": "above", "under": "below"}
WAYS |= {name: name for name in geneval.RELATIONS}


def read(caption):
    """What a caption claims, by its own rules: (number, size, colour, shape) of each phrase; relation; background."""
    text, _, background = caption.partition(" on ")
    background = background.removeprefix("a ").removesuffix(" background")
    text = re.sub("^there (is|are) ", "", text)
    relation = next((way for way in sorted(WAYS, key=len, reverse=True) if f" {way} " in text), None)
    parts = text.split(f" {relation} ") if relation else re.split(", | and ", text)
    claims = []
    for part in parts:
        number, *details, shape = part.split()
        shape = next(name for name in outlines.SHAPES if shape in (name, name + "s", name + "es"))
        size = next((word for word in details if word in ("small", "large")), None)
        color = next((word for word in details if word in palette.COLORS), None)
        assert len(details) == (size is not None) + (color is not None), caption
        claims.append((NUMBERS[number], size, color, shape))
    return claims, WAYS[relation] if relation else None, background or None


def called(claim, scene):
    """The one object of the scene that a claim describes."""
    _, size, color, shape = claim
    of_shape = [d for d in world.truth(scene) if d.shape == shape]
    (found,) = [d for d in of_shape if color in (None, d.color) and size in (None, d.size)]
    return found


@pytest.fixture(scope="module", params=[scenes.VARIED_32, scenes.VARIED_64], ids=["32", "64"])
def drawn(request):
    """A world, and captioned scenes of its prior."""
    source = scenes.Scenes(request.param, seed=5)
    rngs = (np.random.default_rng(i) for i in range(1500))
    return request.param, [(source.scene(i), captions.caption(source.scene(i), rng)) for i, rng in enumerate(rngs)]


@pytest.mark.long
def test_every_caption_is_true_and_names_every_object(drawn):
    for scene, caption in drawn[1]:
        claims, relation, background = read(caption)
        assert background in (None, scene.background), caption
        said = collections.Counter()
        for number, size, color, shape in claims:
            said[size, color, shape] += number
        size, color = any(c[1] for c in claims), any(c[2] for c in claims)
        shown = [(o.size if size else None, o.color if color else None, o.shape) for o in scene.objects]
        assert said == collections.Counter(shown), caption
        if relation:
            a, b = (called(claim, scene) for claim in claims)
            assert relation in geneval.relations(a, b), caption


def forms(texts):
    """The texts with every shape, colour and number replaced by one of its kind."""
    shapes, colors = "|".join(outlines.SHAPES), "|".join(palette.COLORS)
    numbers = "|".join(geneval.NUMBERS[1:])
    for text in texts:
        text = re.sub(rf"\b(?:an?) (?:{colors})\b", "a COLOR", text)
        text = re.sub(rf"\b(?:{shapes})(?:es|s)?\b", "SHAPE", text)
        yield re.sub(rf"\b(?:{numbers})\b", "NUMBER", text)


@pytest.mark.long
def test_the_form_of_every_prompt_is_a_caption_of_the_prior(drawn):
    of, pictures = drawn
    seen = set(forms(caption for _, caption in pictures))
    prompts = geneval.make_prompts(of.shapes, of.colors, per_task=40)
    assert set(forms(p.text for p in prompts)) <= seen


def test_captions_stay_within_their_bounds():
    """The longest words in every arrangement of two objects, and many objects of the longest words."""
    rng = np.random.default_rng(0)
    a = Object("triangle", "orange", "large", 0.2, 0.4, 0.19)
    b = Object("triangle", "yellow", "small", 0.7, 0.6, 0.14)
    texts = {captions.caption(Scene((a, b), "white"), rng) for _ in range(500)}
    assert max(map(len, texts)) <= captions.MAX_LENGTH
    assert "a large orange triangle to the left of a small yellow triangle" in texts
    colors = ("orange", "yellow", "purple", "green", "blue", "cyan")
    crowd = tuple(Object("triangle", color, "small", 0.5, 0.5, 0.1) for color in colors)
    assert max(len(captions.caption(Scene(crowd, "white"), rng)) for _ in range(100)) <= captions.MAX_LENGTH_MANY


@pytest.mark.long
def test_captions_of_the_prior_stay_within_their_bounds(drawn):
    for scene, caption in drawn[1]:
        assert len(caption) <= (captions.MAX_LENGTH if len(scene.objects) <= 2 else captions.MAX_LENGTH_MANY)


def test_two_objects_called_the_same_are_counted_not_related():
    same = tuple(Object("circle", "red", "small", x, 0.5, 0.14) for x in (0.2, 0.8))
    rng = np.random.default_rng(0)
    for _ in range(50):
        assert "two" in captions.caption(Scene(same, "white"), rng)


@pytest.mark.long
@pytest.mark.parametrize("color", [True, False])
def test_a_description_says_the_colors_and_the_background_as_asked(drawn, color):
    for scene, _ in drawn[1][:300]:
        for background in (True, False):
            said = captions.describe(scene, np.random.default_rng(1), color=color, background=background)
            claims, _, place = read(said.text)
            assert all((c[2] is not None) == said.color for c in claims)
            assert all((c[1] is not None) == said.size for c in claims)
            assert (place is not None) == said.background
            if len(scene.objects) <= 2:
                assert (said.color, said.background) == (color, background)


@pytest.mark.long
def test_the_relation_of_a_description_is_the_one_its_caption_says(drawn):
    for scene, _ in drawn[1][:300]:
        said = captions.describe(scene, np.random.default_rng(2), color=True)
        _, relation, _ = read(said.text)
        assert (said.relation[2] if said.relation else None) == relation


def test_captions_depend_on_the_generator_alone():
    scene = scenes.Scenes().scene(11)
    texts = [[captions.caption(scene, np.random.default_rng(k)) for k in range(20)] for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 3


def test_a_share_of_the_lists_names_objects_from_left_to_right():
    pair = Scene(
        (Object("circle", "red", "small", 0.7, 0.3, 0.14), Object("square", "blue", "small", 0.3, 0.7, 0.14)), "white"
    )
    for share, seen in ((0.0, 0.5), (0.6, 0.8), (1.0, 1.0)):
        wording = world.Wording(color=0.0, relation=0.0, in_order=share)
        texts = [captions.caption(pair, np.random.default_rng(k), wording) for k in range(400)]
        in_order = [text.index("square") < text.index("circle") for text in texts]
        assert np.mean(in_order) == pytest.approx(seen, abs=0.08), share


def test_worlds_of_earlier_versions_are_called_as_they_were():
    assert repr(world.Wording(color=0.55)) == "Wording(color=0.55, relation=0.5)"
    assert "wording" not in repr(world.QUICKSTART)
    assert repr(world.World(wording=world.Wording(in_order=0.5))).endswith("relation=0.5, in_order=0.5))")
