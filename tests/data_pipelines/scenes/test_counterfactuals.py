import collections

import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.scenes import counterfactuals, parser, render, world


def edits(of, count, seed=0):
    source, rng = scenes.Scenes(of, seed=seed), np.random.default_rng(seed)
    return [counterfactuals.sample_edit(source.scene(i), of, rng) for i in range(count)]


@pytest.mark.parametrize("of", [scenes.VARIED_32, scenes.VARIED_64], ids=lambda w: str(w.image_size))
def test_pictures_agree_to_the_bit_outside_the_mask_and_differ_inside(of):
    for edit in edits(of, 40):
        before, after = (render.render(scene, of.image_size) for scene in (edit.before, edit.after))
        mask = counterfactuals.mask(edit, of.image_size)
        np.testing.assert_array_equal(before[~mask], after[~mask])
        assert (before[mask] != after[mask]).any()


def test_the_result_of_an_edit_is_a_scene_of_the_world():
    for edit in edits(scenes.VARIED_32, 60):
        assert scenes.VARIED_32.fits(edit.after.objects)
        picture = render.render(edit.after, 32)
        read = sorted(d[:3] for d in parser.parse(picture, scenes.VARIED_32))
        assert read == sorted(d[:3] for d in world.truth(edit.after))


def test_every_kind_changes_what_its_name_says():
    kinds = collections.Counter()
    for kind, before, after, target in edits(scenes.VARIED_64, 120):
        kinds[kind] += 1
        if kind == "background":
            assert after == before._replace(background=after.background) != before
        elif kind == "remove":
            assert after.objects == before.objects[:target] + before.objects[target + 1 :]
        else:
            old, new = before.objects[target], after.objects[target]
            assert (old.color != new.color) == (kind == "recolor")
            assert (old.shape != new.shape) == (kind == "reshape")
            assert old[2:] == new[2:]
    assert set(kinds) == set(counterfactuals.KINDS)
    assert min(kinds.values()) > 10


def test_edits_never_make_a_held_out_pair():
    of = scenes.World(held_out=(("circle", "red"), ("square", "blue"), ("triangle", "green")))
    assert not {o[:2] for edit in edits(of, 100) for o in edit.after.objects} & set(of.held_out)


def test_a_removed_object_is_never_the_last_one():
    assert all(edit.after.objects for edit in edits(scenes.VARIED_32, 60))


def test_a_scene_that_cannot_change_is_refused():
    of = scenes.World(shapes=("circle",), colors=("red",), backgrounds=("white",), max_objects=1)
    with pytest.raises(ValueError, match="no edit"):
        edits(of, 1)
