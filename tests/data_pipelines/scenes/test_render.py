import numpy as np
import pytest

from data_pipelines import scenes
from data_pipelines.scenes import outlines, palette, render, source
from data_pipelines.scenes.world import Object, Scene

WORLDS = [scenes.VARIED_32, scenes.VARIED_64]


def one(shape, x=0.5, y=0.5, radius=0.2, rotation=0, background="white"):
    return Scene((Object(shape, "red", "large", x, y, radius, rotation),), background)


@pytest.mark.parametrize("shape", outlines.SHAPES)
def test_total_coverage_is_the_area(shape):
    o = one(shape, rotation=5).objects[0]
    assert render.alpha(o, 64).sum() == pytest.approx(outlines.area(shape) * (0.2 * 64) ** 2, rel=0.01)


@pytest.mark.parametrize("shape", outlines.SHAPES)
def test_antialiasing_agrees_with_supersampling(shape):
    """Coverage by distance against the share of 16 x 16 points inside: close on average, worst at a star's tips."""
    o, n = one(shape, x=0.47, y=0.52, radius=0.25, rotation=6).objects[0], 16
    exact = (render.distance(o, 32 * n) < 0).reshape(32, n, 32, n).mean(axis=(1, 3))
    error = np.abs(render.alpha(o, 32) - exact)
    assert error.max() < 0.35
    assert error[(exact > 0) & (exact < 1)].mean() < 0.05


@pytest.mark.parametrize("shape", outlines.SHAPES)
def test_moving_by_whole_pixels_moves_the_picture(shape):
    still, moved = (render.render(one(shape, x=x, y=y), 64) for x, y in ((0.5, 0.5), (0.5 + 5 / 64, 0.5 - 3 / 64)))
    np.testing.assert_array_equal(np.roll(still, (-3, 5), axis=(0, 1)), moved)


def test_rotation_is_clockwise():
    """A triangle turned clockwise a little has its upper tip right of its centre."""
    coverage = render.alpha(one("triangle", radius=0.3, rotation=15).objects[0], 64)
    tip = np.flatnonzero(coverage.sum(axis=1) > 0.5)[0]
    assert np.average(np.arange(64), weights=coverage[tip]) > 33


@pytest.mark.parametrize("of", WORLDS, ids=lambda w: str(w.image_size))
def test_pixels_far_from_outlines_have_exact_colors(of):
    for i in range(20):
        scene = source.Scenes(of).scene(i)
        picture, labels = render.render(scene, of.image_size), render.segmentation(scene, of.image_size)
        certain = ~render.edges(scene, of.image_size)
        names = [scene.background, *(o.color for o in scene.objects)]
        expected = np.array([palette.rgb(name) for name in names])[labels]
        np.testing.assert_array_equal(picture[certain], expected[certain])


@pytest.mark.parametrize("of", WORLDS, ids=lambda w: str(w.image_size))
def test_swatches_add_up_to_the_picture(of):
    """The palette weighted by its shares is the mean colour of the image."""
    for i in range(20):
        scene = source.Scenes(of).scene(i)
        swatches = render.swatches(scene, of.image_size)
        assert sum(s.fraction for s in swatches) == pytest.approx(1)
        assert [s.fraction for s in swatches] == sorted((s.fraction for s in swatches), reverse=True)
        mean = sum(s.fraction * np.array(s.rgb) for s in swatches)
        np.testing.assert_allclose(mean, render.render(scene, of.image_size).mean(axis=(0, 1)), atol=0.1)


def test_masks_are_disjoint_and_label_the_segmentation():
    for i in range(20):
        scene = source.Scenes(scenes.VARIED_64).scene(i)
        masks, labels = render.masks(scene, 64), render.segmentation(scene, 64)
        assert masks.sum(axis=0).max() <= 1
        for k, mask in enumerate(masks):
            np.testing.assert_array_equal(labels == k + 1, mask)


def test_cutout_over_the_background_is_the_picture():
    for shape in outlines.SHAPES:
        scene = one(shape, background="gray")
        cutout = render.cutout(scene, 64, 0).astype(float)
        share = cutout[..., 3:] / 255
        composed = share * cutout[..., :3] + (1 - share) * np.array(palette.rgb("gray"))
        assert np.abs(composed - render.render(scene, 64)).max() <= 1


def test_an_object_that_left_the_picture_is_not_drawn():
    empty = render.render(Scene((), "black"), 32)
    np.testing.assert_array_equal(render.render(one("circle", x=-1.0, background="black"), 32), empty)


@pytest.mark.parametrize("of", WORLDS, ids=lambda w: str(w.image_size))
def test_painting_changes_the_covered_pixels_alone(of):
    noise = np.random.default_rng(0).integers(0, 256, (of.image_size, of.image_size, 3), np.uint8)
    for scene in (source.Scenes(of, seed=6).scene(i) for i in range(30)):
        painted, covered = render.over(noise, scene.objects), render.coverage(scene.objects, of.image_size)
        np.testing.assert_array_equal(painted[covered == 0], noise[covered == 0])
        colors = np.array([palette.rgb(o.color) for o in scene.objects])
        assert (painted[covered == 1][:, None] == colors).all(axis=-1).any(axis=-1).all()
        true = np.max([render.alpha(o, of.image_size) for o in scene.objects], axis=0)
        np.testing.assert_allclose(covered, true, atol=1e-6)
