import collections
import itertools
import math
import random

import pytest

from nova_jax.evaluation import geneval
from nova_jax.evaluation.geneval import Detected, Prompt, Wanted

SHAPES, COLORS = ("circle", "square", "triangle"), ("red", "green", "blue", "yellow")


def seen(shape, color="red", x=0.5, y=0.5, side=0.2, confidence=1.0):
    return Detected(shape, color, "small", x, y, side, side, confidence)


def ask(task, *wanted, relation=None):
    return Prompt(task, "", tuple(Wanted(*w) for w in wanted), relation)


def test_relations_follow_the_angle_between_the_centres():
    """Points (no extent): a component over half of the offset is a relation, so two hold between 30 and 60 degrees."""
    for degrees in range(1, 360, 2):
        x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        expected = {"right of"} if x > 0.5 else {"left of"} if x < -0.5 else set()
        expected |= {"below"} if y > 0.5 else {"above"} if y < -0.5 else set()
        assert geneval.relations(seen("circle", x=x, y=y, side=0), seen("square", x=0, y=0, side=0)) == expected


def test_relations_are_shortened_by_a_tenth_of_both_sides():
    """Along one axis at distance d the rule reads (d - 0.1 (w_a + w_b)) / d > 1/2, that is d > 0.2 (w_a + w_b)."""
    for side in (0.1, 0.3):
        threshold = 0.2 * 2 * side
        for d, holds in ((threshold * 0.99, False), (threshold * 1.01, True)):
            pair = seen("circle", x=0.5 - d, side=side), seen("square", x=0.5, side=side)
            assert ("left of" in geneval.relations(*pair)) == holds


def test_relations_are_mirrored_when_the_objects_change_roles():
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    rng = random.Random(0)
    for _ in range(200):
        a, b = (seen("circle", x=rng.random(), y=rng.random()) for _ in range(2))
        assert {opposite[r] for r in geneval.relations(a, b)} == geneval.relations(b, a)
    assert geneval.relations(a, a) == frozenset()


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([seen("circle")], True),
        ([seen("circle", "blue")], True),
        ([seen("square")], False),
        ([seen("circle"), seen("square")], False),
        ([seen("circle"), seen("circle")], False),
        ([], False),
    ],
)
def test_single_object_asks_for_the_shape_alone(found, right):
    assert geneval.score(ask("single_object", ("circle",)), found) == right


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([seen("circle"), seen("square")], True),
        ([seen("square"), seen("triangle"), seen("circle")], True),
        ([seen("circle"), seen("circle")], False),
    ],
)
def test_two_object_asks_for_one_of_each_shape(found, right):
    assert geneval.score(ask("two_object", ("circle",), ("square",)), found) == right


def test_counting_asks_for_the_exact_number_of_the_shape():
    prompt = ask("counting", ("circle", None, 3))
    for number in range(6):
        found = [seen("circle")] * number + [seen("square")]
        assert geneval.score(prompt, found) == (number == 3)
        assert geneval.judge(prompt, found).miscount == abs(number - 3)


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ([seen("circle", "red")], True),
        ([seen("circle", "blue")], False),
        ([seen("square", "red")], False),
        ([seen("square", "blue"), seen("circle", "red")], True),
        ([seen("circle", "blue", confidence=0.9), seen("circle", "red", confidence=0.8)], False),
        ([seen("circle", "blue", confidence=0.8), seen("circle", "red", confidence=0.9)], True),
    ],
)
def test_colors_judges_the_most_confident_object_of_the_shape(found, right):
    assert geneval.score(ask("colors", ("circle", "red")), found) == right


def test_position_asks_for_the_relation_in_the_named_order():
    left, right = seen("circle", x=0.2), seen("square", x=0.8)
    for relation in geneval.RELATIONS:
        asked = ask("position", ("circle",), ("square",), relation=relation)
        assert geneval.score(asked, [left, right]) == (relation == "left of")
        assert geneval.score(asked._replace(wanted=asked.wanted[::-1]), [left, right]) == (relation == "right of")
    assert not geneval.score(ask("position", ("circle",), ("square",), relation="left of"), [left])


def test_color_attribution_binds_each_color_to_its_shape():
    prompt = ask("color_attribution", ("circle", "red"), ("square", "blue"))
    pictures = {
        "bound": [seen("circle", "red"), seen("square", "blue")],
        "swapped": [seen("circle", "blue"), seen("square", "red")],
        "leaked": [seen("circle", "red"), seen("square", "red")],
    }
    judged = {name: geneval.judge(prompt, found) for name, found in pictures.items()}
    assert {name: j.correct for name, j in judged.items()} == {"bound": True, "swapped": False, "leaked": False}
    assert {name: j.swapped for name, j in judged.items()} == {"bound": False, "swapped": True, "leaked": False}


def test_exact_pictures_show_nothing_else():
    prompt, pair = ask("two_object", ("circle",), ("square",)), [seen("circle"), seen("square")]
    assert geneval.judge(prompt, pair).exact
    for more in ("circle", "triangle", "unknown"):
        crowded = geneval.judge(prompt, [*pair, seen(more)])
        assert (crowded.correct, crowded.exact) == (True, False)


@pytest.mark.parametrize("per_task", [1, 7, 100])
def test_prompts_are_balanced_over_tasks_and_combinations(per_task):
    prompts = geneval.make_prompts(SHAPES, COLORS, per_task)
    assert collections.Counter(p.task for p in prompts) == dict.fromkeys(geneval.TASKS, per_task)
    for task in geneval.TASKS:
        counts = collections.Counter(p.text for p in prompts if p.task == task)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_prompts_of_a_seed_are_reproducible_and_a_longer_list_starts_with_the_shorter():
    first, second = (geneval.make_prompts(SHAPES, COLORS, n, seed=1) for n in (5, 9))
    assert first == geneval.make_prompts(SHAPES, COLORS, 5, seed=1) != geneval.make_prompts(SHAPES, COLORS, 5, seed=2)
    for task in geneval.TASKS:
        assert [p for p in second if p.task == task][:5] == [p for p in first if p.task == task]


def test_prompt_texts_read_like_the_tasks():
    by_task = {}
    for prompt in geneval.make_prompts(("circle", "cross"), ("red", "orange"), 200):
        by_task.setdefault(prompt.task, set()).add(prompt.text)
    assert by_task["single_object"] == {"a circle", "a cross"}
    assert by_task["two_object"] == {"a circle and a cross", "a cross and a circle"}
    assert {"two circles", "three crosses", "four circles"} < by_task["counting"]
    assert by_task["colors"] == {"a red circle", "an orange circle", "a red cross", "an orange cross"}
    assert {"a circle left of a cross", "a cross below a circle"} < by_task["position"]
    assert {"a red circle and an orange cross", "an orange circle and a red cross"} < by_task["color_attribution"]


def test_prompts_can_be_limited_to_pairs():
    pairs = [("circle", "red"), ("square", "blue")]
    prompts = geneval.make_prompts(SHAPES, COLORS, 20, pairs=pairs)
    assert {(w.shape, w.color) for p in prompts for w in p.wanted if w.color} == set(pairs)


def test_a_perfect_model_scores_one_and_an_empty_one_zero():
    rng = random.Random(0)
    places = {"left of": (0.2, 0.5), "right of": (0.8, 0.5), "above": (0.5, 0.2), "below": (0.5, 0.8), None: (0.2, 0.2)}
    perfect = []
    for prompt in (prompts := geneval.make_prompts(SHAPES, COLORS, 30)):
        first, *rest = [w for w in prompt.wanted for _ in range(w.number)]
        x, y = places[prompt.relation]
        found = [seen(first.shape, first.color or "red", x, y)]
        found += [seen(w.shape, w.color or rng.choice(COLORS)) for w in rest]
        perfect.append(geneval.judge(prompt, found))
    summary = geneval.summarize(perfect)
    assert (summary.overall, summary.overall_exact, summary.swap_rate, summary.count_error) == (1, 1, 0, 0)
    assert geneval.summarize([geneval.judge(p, []) for p in prompts]).overall == 0


def test_overall_is_the_mean_of_the_tasks_not_of_the_pictures():
    right = geneval.judge(ask("single_object", ("circle",)), [seen("circle")])
    wrong = geneval.judge(ask("colors", ("circle", "red")), [])
    summary = geneval.summarize([right] * 30 + [wrong] * 10)
    assert summary.overall == 0.5
    assert summary.tasks["single_object"].n == 30
    assert summary.tasks["colors"].low == 0 < summary.tasks["colors"].high < 0.3
    assert (summary.swap_rate, summary.count_error) == (None, None)


def test_chance_is_the_closed_form_for_uniform_single_objects():
    """Images of one object of any shape and colour: 1/3 for a shape, 1/12 for a coloured shape, 0 for two objects."""
    pictures = [[seen(shape, color)] for shape, color in itertools.product(SHAPES, COLORS)]
    chance = geneval.chance_rates(geneval.make_prompts(SHAPES, COLORS, 36), pictures)
    expected = dict.fromkeys(geneval.TASKS, 0.0) | {"single_object": 1 / 3, "colors": 1 / 12}
    assert chance == pytest.approx(expected)
    judged = [geneval.judge(ask("colors", ("circle", "red")), [seen("circle")])]
    assert geneval.summarize(judged, chance).tasks["colors"].chance == pytest.approx(1 / 12)


def test_vocabularies_too_small_for_the_tasks_are_refused():
    with pytest.raises(ValueError, match="2 or more shapes"):
        geneval.make_prompts(("circle",), COLORS, 1)
    with pytest.raises(ValueError, match="differ in shape and in colour"):
        geneval.make_prompts(SHAPES, COLORS, 1, pairs=[("circle", "red"), ("circle", "blue")])
    with pytest.raises(ValueError, match="at least one image"):
        geneval.summarize([])
