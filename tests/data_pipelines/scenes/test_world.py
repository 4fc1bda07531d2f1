import collections
import itertools

import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.scenes import world

WORLDS = [world.VARIED_32, world.VARIED_64]


def draw(of, count, seed=0, sample=world.sample_scene):
    rng = np.random.default_rng(seed)
    return [sample(of, rng) for _ in range(count)]


@pytest.mark.parametrize("of", WORLDS, ids=lambda w: str(w.image_size))
def test_objects_stay_inside_and_apart(of):
    for scene in draw(of, 200):
        boxes = [o.box for o in scene.objects]
        assert all(low > 0 and high < 1 for box in boxes for low, high in [(min(box), max(box))])
        for a, b in itertools.combinations(boxes, 2):
            across = max(a[0] - b[2], b[0] - a[2])
            down = max(a[1] - b[3], b[1] - a[3])
            assert max(across, down) >= of.gap
        assert of.fits(scene.objects)


@pytest.mark.parametrize("of", WORLDS, ids=lambda w: str(w.image_size))
def test_sizes_are_told_apart_by_the_radius(of):
    for o in (o for scene in draw(of, 200) for o in scene.objects):
        assert (o.radius > world.LARGE) == (o.size == "large")
        assert of.min_radius <= o.radius <= of.max_radius


def test_shapes_and_colors_are_uniform():
    """Each of 24 pairs is a lone object's with p = 1/24, up to five standard errors."""
    lone = scenes.World(kinds=(1.0, 0.0, 0.0, 0.0))
    counts = collections.Counter(s.objects[0][:2] for s in draw(lone, 1200))
    assert len(counts) == 24
    expected = 1200 / 24
    assert max(abs(n - expected) for n in counts.values()) < 5 * expected**0.5


def test_all_six_tasks_are_in_the_prior():
    drawn = draw(world.VARIED_32, 1000)
    counts = collections.Counter(len(s.objects) for s in drawn)
    assert 0.3 < counts[1] / 1000 < 0.4
    assert 0.4 < counts[2] / 1000 < 0.52
    assert min(counts[3], counts[4]) / 1000 > 0.06
    groups = [s for s in drawn if len(s.objects) > 2 and len({o.shape for o in s.objects}) == 1]
    assert 0.35 < sum(len({o.color for o in s.objects}) == 1 for s in groups) / len(groups) < 0.65


def test_held_out_pairs_are_drawn_only_when_asked_for():
    held_out = (("circle", "red"), ("square", "blue"), ("triangle", "pink"))
    of = scenes.World(held_out=held_out)
    assert not {o[:2] for s in draw(of, 300) for o in s.objects} & set(held_out)
    assert {o[:2] for s in draw(of, 200, sample=world.sample_held_out) for o in s.objects} == set(held_out)


def test_a_world_of_one_kind_of_object_can_be_drawn():
    of = scenes.World(shapes=("circle",), colors=("red",), backgrounds=("white",), max_objects=1)
    assert {s.objects[0][:2] for s in draw(of, 20)} == {("circle", "red")}


def test_truth_reports_every_object_in_place():
    (scene,) = draw(world.VARIED_32, 1, seed=3)
    for o, found in zip(scene.objects, world.truth(scene), strict=True):
        left, top, right, bottom = o.box
        assert found[:5] == o[:5]
        assert (found.width, found.height) == pytest.approx((right - left, bottom - top))


def test_impossible_worlds_are_refused():
    for choices, message in [
        ({"shapes": ("circle", "blob")}, "shapes is"),
        ({"colors": ()}, "colors is"),
        ({"backgrounds": ("white", "white")}, "different names"),
        ({"image_size": 16}, "32 pixels"),
        ({"max_objects": 5}, "max_objects is 5"),
        ({"max_rotation": 45}, "max_rotation is 45"),
        ({"kinds": (0.0, 0.0, 0.0, 0.0)}, "kinds is"),
        ({"held_out": (("star", "red"),)}, "held_out names"),
        ({"shapes": ("circle",), "colors": ("red",), "held_out": (("circle", "red"),)}, "no colour for circle"),
    ]:
        with pytest.raises(ValueError, match=message):
            scenes.World(**choices)


def test_sampling_held_out_pairs_of_a_world_without_any_is_refused():
    with pytest.raises(ValueError, match="holds nothing out"):
        draw(world.VARIED_32, 1, sample=world.sample_held_out)


def test_a_world_too_crowded_to_draw_is_refused():
    of = scenes.World(gap=0.6, kinds=(0.0, 0.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="find no room"):
        draw(of, 20)


@pytest.mark.parametrize("of", [world.CANVAS_32, world.CANVAS_64], ids=lambda w: str(w.image_size))
def test_rearranged_objects_are_the_same_elsewhere_and_keep_their_distance(of):
    rng = np.random.default_rng(4)
    for scene in draw(of, 60):
        moved = world.rearrange(of, rng, scene.objects)
        assert [o._replace(x=0.0, y=0.0) for o in moved] == [o._replace(x=0.0, y=0.0) for o in scene.objects]
        assert of.fits(moved)
        assert moved != scene.objects
        kept, others = scene.objects[:1], scene.objects[1:]
        assert of.fits(kept + world.rearrange(of, rng, others, around=kept))


def test_objects_without_room_are_refused():
    large = world.Object("circle", "red", "large", 0.5, 0.5, 0.4)
    with pytest.raises(ValueError, match="no room"):
        world.rearrange(world.CANVAS_32, np.random.default_rng(0), (large,), around=(large,))
