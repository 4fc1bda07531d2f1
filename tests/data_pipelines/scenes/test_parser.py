import numpy as np
import pytest
from scipy import ndimage

from data_pipelines import scenes
from data_pipelines.scenes import palette, parser, render, world
from data_pipelines.scenes.world import Object, Scene

WORLDS = [scenes.VARIED_32, scenes.VARIED_64]
by_size = pytest.mark.parametrize("of", WORLDS, ids=lambda w: str(w.image_size))


def agrees(truth, found):
    """Every object read once, with its shape, colour and size, within one pixel of 32."""
    if sorted(d[:3] for d in truth) != sorted(d[:3] for d in found):
        return False
    return all(any(t[:3] == d[:3] and max(abs(t.x - d.x), abs(t.y - d.y)) < 1 / 32 for d in found) for t in truth)


def accuracy(of, count, damage=lambda picture, rng: picture, seed=1):
    source, rng = scenes.Scenes(of, seed=seed), np.random.default_rng(0)
    right = 0
    for i in range(count):
        found = parser.parse(damage(source[i]["pixels"][0], rng), of)
        right += agrees(world.truth(source.scene(i)), found)
    return right / count


def degrade(picture, rng, blur=0.6, noise=0.03, shift=0.03):
    """What a lossy autoencoder does: blur (in pixels), noise per channel and a common colour shift (of 0..1)."""
    blurred = ndimage.gaussian_filter(picture / 255, (blur, blur, 0), mode="nearest")
    shifted = blurred + rng.normal(0, noise, picture.shape) + rng.uniform(-shift, shift, 3)
    return np.clip(np.rint(shifted * 255), 0, 255).astype(np.uint8)


@pytest.mark.long
@by_size
def test_true_pictures_are_read_without_a_mistake(of):
    assert accuracy(of, 200) == 1.0


@by_size
def test_pictures_as_an_autoencoder_returns_them_are_read(of):
    assert accuracy(of, 100, degrade) >= 0.99


@by_size
def test_badly_blurred_pictures_are_read(of):
    assert accuracy(of, 100, lambda p, rng: degrade(p, rng, blur=1.0, noise=0.05)) >= 0.98


@pytest.mark.slow
@by_size
def test_thousands_of_pictures_are_read(of):
    assert accuracy(of, 2000, seed=2) >= 0.999
    assert accuracy(of, 2000, degrade, seed=3) >= 0.995


@by_size
def test_places_and_boxes_are_read_to_a_fraction_of_a_pixel(of):
    source = scenes.Scenes(of, seed=3)
    for i in range(30):
        truth = world.truth(source.scene(i))
        for d in parser.parse(source[i]["pixels"], of):
            t = min(truth, key=lambda t, d=d: abs(t.x - d.x) + abs(t.y - d.y))
            assert max(abs(t.x - d.x), abs(t.y - d.y)) * of.image_size < 0.2
            assert max(abs(t.width - d.width), abs(t.height - d.height)) * of.image_size < 2


@by_size
def test_backgrounds_are_read(of):
    source, rng = scenes.Scenes(of, seed=4), np.random.default_rng(0)
    for i in range(30):
        assert parser.background(degrade(source[i]["pixels"][0], rng), of) == source.scene(i).background


@pytest.mark.parametrize("background", palette.BACKGROUNDS)
def test_an_empty_picture_holds_nothing(background):
    picture = render.render(Scene((), background), 32)
    assert parser.parse(picture, scenes.VARIED_32) == []
    assert parser.parse(degrade(picture, np.random.default_rng(0)), scenes.VARIED_32) == []


def test_floating_point_pixels_are_read_like_bytes():
    source = scenes.Scenes(seed=5)
    for i in range(20):
        picture = source[i]["pixels"]
        whole, floating = (parser.parse(p, source.world) for p in (picture, picture / np.float32(127.5) - 1))
        for a, b in zip(whole, floating, strict=True):
            assert a[:3] == b[:3]
            assert a[3:] == pytest.approx(b[3:], abs=1e-5)


def test_touching_objects_of_different_colors_are_two():
    a = Object("square", "red", "small", 0.37, 0.5, 0.14)
    b = Object("square", "blue", "small", 0.37 + 2 * 0.88 * 0.14, 0.5, 0.14)
    found = parser.parse(render.render(Scene((a, b), "white"), 32), scenes.VARIED_32)
    assert sorted(d[:2] for d in found) == [("square", "blue"), ("square", "red")]


def test_a_speck_is_no_object():
    picture = render.render(Scene((), "white"), 32)
    picture[4:7, 4:7] = palette.rgb("red")
    assert parser.parse(picture, scenes.VARIED_32) == []


def test_a_shape_outside_the_vocabulary_is_unknown():
    picture = render.render(Scene((), "white"), 32)
    picture[4:28, 15:18] = palette.rgb("red")
    (found,) = parser.parse(picture, scenes.VARIED_32)
    assert (found.shape, found.color) == (parser.UNKNOWN, "red")


def test_an_object_in_a_background_color_carries_its_name():
    picture = render.render(Scene((), "white"), 32)
    picture[8:24, 8:24] = palette.rgb("black")
    (found,) = parser.parse(picture, scenes.VARIED_32)
    assert (found.shape, found.color) == ("square", "black")


def test_confidence_falls_with_damage():
    scene = Scene((Object("triangle", "green", "large", 0.5, 0.5, 0.25),), "white")
    picture, rng = render.render(scene, 32), np.random.default_rng(0)
    levels = [degrade(picture, rng, blur=0.1, noise=noise) for noise in (0.0, 0.05, 0.15)]
    confidences = [parser.parse(level, scenes.VARIED_32)[0].confidence for level in levels]
    assert confidences == sorted(confidences, reverse=True)
    assert confidences[0] > 0.9


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(32, 32, 3\)"):
        parser.parse(np.zeros((64, 64, 3), np.uint8), scenes.VARIED_32)


BANDED = [scenes.CANVAS_32, scenes.CANVAS_64]


@pytest.mark.parametrize("of", BANDED, ids=lambda w: str(w.image_size))
def test_objects_in_any_color_on_bands_are_read(of):
    source, rng = scenes.CanvasScenes(of, "colors", seed=1), np.random.default_rng(0)
    read = 0
    for i in range(60):
        truth, picture = source.truth(i), source[i]["pixels"][0]
        asked = sorted((o.shape, o.color) for o in truth.after.objects)
        assert sorted((d.shape, d.color) for d in parser.parse_banded(picture, of)) == asked
        damaged = degrade(picture, rng, blur=0.5, noise=0.01, shift=0.015)
        read += sorted(d.shape for d in parser.parse_banded(damaged, of)) == [shape for shape, _ in asked]
    assert read >= 57


@by_size
def test_the_foreground_is_what_objects_cover_by_half(of):
    source = scenes.Scenes(of, seed=4)
    for i in range(30):
        covered = np.logical_or.reduce(render.masks(source.scene(i), of.image_size))
        assert (parser.foreground(source[i]["pixels"], of) != covered).mean() < 0.002
    assert not parser.foreground(np.zeros((of.image_size, of.image_size, 3), np.uint8), of).any()
