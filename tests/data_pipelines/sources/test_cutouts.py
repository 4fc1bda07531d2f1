import pickle

import numpy as np
import PIL.Image
import pytest

from data_pipelines import conditioned, images, loader, sources
from data_pipelines.sources import base, cutouts
from nova_jax.tasks import conditions

COLORS = np.array([(200, 30, 30), (30, 160, 60), (20, 40, 220)], np.uint8)
COUNT = 25


def cutout_of(number: int, side: int = 48) -> np.ndarray:
    """A disc of two flat colours with a soft rim, bigger for higher numbers; clear pixels have a colour too."""
    y, x = np.mgrid[:side, :side] + 0.5
    radius = side * (0.25 + 0.2 * number / COUNT)
    distance = np.hypot(x - side / 2, y - side / 2)
    alpha = np.clip((radius - distance) / 3, 0, 1)
    rgb = np.where((x < side / 2)[..., None], COLORS[number % 3], COLORS[(number + 1) % 3])
    return np.concatenate([rgb, np.rint(255 * alpha)[..., None]], axis=-1).astype(np.uint8)


@pytest.fixture
def source(make_tar, png):
    files = {}
    for i in range(COUNT):
        files |= {f"{i:03d}.png": png(cutout_of(i)), f"{i:03d}.txt": f"disc {i}".encode()}
    return sources.WebDataset(make_tar("cutouts.tar", files), decoder=images.WITH_ALPHA)


@pytest.fixture(params=["made", "real"])
def either(request):
    """The small tar, and the real one where there is one."""
    if request.param == "made":
        return request.getfixturevalue("source")
    path = request.getfixturevalue("shared") / "data" / "emoji.tar"
    return sources.WebDataset(str(path), decoder=images.WITH_ALPHA)


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("task", cutouts.TASKS)
def test_an_element_depends_on_seed_task_and_index_alone(source, task):
    elements = cutouts.Cutouts(source, task, seed=3)
    again = pickle.loads(pickle.dumps(elements))
    assert len(elements) == cutouts.REPEATS[task] * 22
    for i in (20, 0, 7):
        assert equal(elements[i], again[i])
        assert equal(elements[i], cutouts.Cutouts(source, task, seed=3, length=21)[i])
    if task != "generate":
        assert not equal(elements[0], elements[22])  # the same image, otherwise
        assert not equal(elements[0], cutouts.Cutouts(source, task, seed=4)[0])


@pytest.mark.parametrize("task", cutouts.TASKS)
def test_elements_have_the_keys_and_shapes_of_their_task(either, task):
    element = cutouts.Cutouts(either, task, size=(24, 32))[5]
    shapes = {name: value.shape for name, value in element.items() if isinstance(value, np.ndarray)}
    extra = {
        "generate": {},
        "matte": {"source": (1, 24, 32, 3)},
        "colors": {"palette": (conditions.MAX_COLORS, 3), "references": (1, 24, 32, 3)},
    }
    assert shapes == {"pixels": (1, 24, 32, 3)} | extra[task]
    assert all(value.dtype == np.uint8 for value in element.values() if isinstance(value, np.ndarray))
    assert bool(element["caption"]) == (task != "matte")


def test_the_alpha_of_a_matte_recomposes_its_source(either, monkeypatch):
    laid = []
    over = cutouts.over
    monkeypatch.setattr(cutouts, "over", lambda cutout, under: laid.append((cutout, under)) or over(cutout, under))
    for i in range(40):
        element = cutouts.Cutouts(either, "matte")[i]
        cutout, background = laid[-1]
        alpha = element["pixels"][0].astype(float) / 255
        assert alpha.min() < alpha.max()
        exact = alpha * cutout[..., :3] + (1 - alpha) * background
        assert np.abs(exact - element["source"][0]).max() <= 1
        np.testing.assert_array_equal(element["source"][0][alpha[..., 0] == 1], cutout[cutout[..., 3] == 255][:, :3])


def test_compositing_agrees_with_that_of_pictures():
    rgba = np.random.default_rng(0).integers(0, 256, (64, 64, 4), np.uint8)
    expected = images.composite(PIL.Image.fromarray(rgba), (255, 255, 255))
    np.testing.assert_array_equal(cutouts.over(rgba, cutouts.WHITE), np.asarray(expected))


def test_some_mattes_have_two_cutouts_of_half_the_size(source):
    elements = cutouts.Cutouts(source, "matte")
    alphas = [elements[i]["pixels"][0, ..., 0] for i in range(200)]
    gaps = np.array([alpha[:, 15:17].max() < 255 for alpha in alphas])  # a single disc covers the middle
    assert 0.15 < gaps.mean() < 0.35
    for alpha in np.array(alphas)[gaps]:
        assert alpha[:, :16].max() == alpha[:, 16:].max() == 255


def test_backgrounds_are_as_large_as_the_picture_and_differ(source):
    elements, rng = cutouts.Cutouts(source, size=(24, 32)), np.random.default_rng(0)
    plain, gradient, blurred = (make(elements, 3, rng) for make in cutouts.BACKGROUNDS)
    assert plain.shape == gradient.shape == blurred.shape == (24, 32, 3)
    assert np.ptp(plain, axis=(0, 1)).max() == 0
    assert 0 < np.abs(np.diff(gradient.astype(int), axis=1)).max() < 20
    assert 0 < np.abs(np.diff(blurred.astype(int), axis=1)).max() < 60


def test_every_palette_colour_is_a_colour_of_the_target(either):
    counts = []
    for i in range(60):
        element = cutouts.Cutouts(either, "colors")[i]
        count = element["num_colors"]
        counts.append(count)
        shown = {tuple(pixel) for pixel in element["pixels"].reshape(-1, 3).tolist()}
        assert all(tuple(asked) in shown for asked in element["palette"][:count].tolist())
        assert not element["palette"][count:].any()
    assert min(counts) >= 1
    assert 2 <= max(counts) <= cutouts.MAX_DOMINANT


def test_dominant_colours_are_those_of_areas_and_the_largest_comes_first():
    picture = np.full((20, 20, 4), 255, np.uint8)
    picture[:, :12, :3], picture[:, 12:, :3] = COLORS[0], COLORS[1]
    picture[5, :, :3] = COLORS[2]  # a line is no area
    picture[10:13, 2:5, :3] = 128  # one pixel inside: below the least share
    np.testing.assert_array_equal(cutouts.dominant_colors(picture), COLORS[:2])
    picture[:, 12:, 3] = 100  # what is not opaque does not count
    np.testing.assert_array_equal(cutouts.dominant_colors(picture), COLORS[:1])
    striped = np.full((20, 20, 4), 255, np.uint8)
    striped[::2, :, :3], striped[1::2, :, :3] = COLORS[:2]  # nothing is flat: all that is opaque counts
    assert {tuple(rgb) for rgb in cutouts.dominant_colors(striped)} == {tuple(rgb) for rgb in COLORS[:2]}


def test_hues_turn_but_alpha_and_grays_stay():
    cutout = cutout_of(0)
    turned = cutouts.turn_hue(cutout, 1 / 3)
    np.testing.assert_array_equal(turned[..., 3], cutout[..., 3])
    red = turned[24, 20, :3].astype(int)  # becomes green
    assert np.abs(red - (30, 200, 30)).max() <= 4
    gray = np.full((4, 4, 4), 90, np.uint8)
    np.testing.assert_array_equal(cutouts.turn_hue(gray, 0.4), gray)


def test_one_caption_comes_in_many_hues_with_and_without_a_gray_reference(source):
    elements = cutouts.Cutouts(source, "colors")
    same = [elements[i] for i in range(0, len(elements), 22)]
    assert len({element["caption"] for element in same}) == 1
    assert len({element["pixels"].tobytes() for element in same}) > 4
    assert {element["num_references"] for element in same} == {0, 1}
    for element in same:
        reference = element["references"][0]
        assert (reference == reference[..., :1]).all()
        assert bool(np.ptp(reference)) == bool(element["num_references"])


def test_held_out_pictures_are_every_tenth_and_the_rest_is_for_training(source):
    seen, held_out = cutouts.Cutouts(source), cutouts.Cutouts(source, held_out=True)
    numbers = [[elements.image_of(i) for i in range(len(elements))] for elements in (seen, held_out)]
    assert numbers[1] == [0, 10, 20]
    assert sorted(numbers[0] + numbers[1]) == list(range(COUNT))
    captions = {element["caption"] for element in held_out}
    assert captions == {"disc 0", "disc 10", "disc 20"}
    assert not captions & {element["caption"] for element in seen}


def test_pictures_for_an_autoencoder_are_of_every_kind(source):
    pictures = cutouts.CutoutImages(source, length=40)
    shown = np.stack([picture["pixels"] for picture in pictures])
    assert shown.shape == (40, 1, 32, 32, 3)
    is_gray = (shown == shown[..., :1]).all(axis=(1, 2, 3, 4))
    assert 0 < is_gray.sum() < 40
    assert (shown[~is_gray][:, 0, 0, 0] == 255).all(axis=-1).any()  # on white, and on other backgrounds
    assert (shown[~is_gray][:, 0, 0, 0] != 255).any()
    assert equal(pictures[7], cutouts.CutoutImages(source, length=40)[7])


def test_batches_of_every_task_can_be_encoded(source):
    for task in cutouts.TASKS:
        elements = cutouts.Cutouts(source, task)
        batch = loader.collate([elements[i] for i in range(4)])
        encoded = conditioned.encode_images(lambda x: np.float32(x[:, :, ::8, ::8]), batch, num_references=1)
        assert encoded["latents"].shape == (4, 1, 4, 4, 3)
        sample = {name: value[0] for name, value in encoded.items()} | {"caption": "x", "task": 1}
        step = conditioned.Conditions(task == "matte", int(task == "colors"), task == "colors", 8)
        assert step(sample, np.random.default_rng(0))["latents"].shape == (1, 4, 4, 3)


def test_the_fingerprint_follows_source_and_choices(source, make_tar, png):
    files = {f"{i}.{kind}": data for i in range(2) for kind, data in (("png", png(cutout_of(i))), ("txt", b"x"))}
    other = sources.WebDataset(make_tar("other.tar", files), decoder=images.WITH_ALPHA)
    several = [
        cutouts.Cutouts(source),
        cutouts.Cutouts(other),
        cutouts.Cutouts(source, "matte"),
        cutouts.Cutouts(source, size=(16, 16)),
        cutouts.Cutouts(source, seed=1),
        cutouts.Cutouts(source, held_out=True),
    ]
    assert len({base.fingerprint(elements) for elements in several}) == len(several)


def test_a_source_without_alpha_is_refused(emoji_like):
    with pytest.raises(sources.DatasetError, match="3 channels, without alpha: read them with decoder="):
        cutouts.Cutouts(sources.WebDataset(emoji_like))[0]


def test_a_picture_that_is_opaque_all_over_is_a_corrupt_record(emoji_like):
    with pytest.raises(sources.CorruptRecord, match="00001: alpha is the same all over"):
        cutouts.Cutouts(sources.WebDataset(emoji_like, decoder=images.WITH_ALPHA))[0]


def test_choices_are_checked(source, make_tar, png):
    with pytest.raises(ValueError, match="generate, matte, colors"):
        cutouts.Cutouts(source, "vary")
    with pytest.raises(ValueError, match="seed is -1"):
        cutouts.Cutouts(source, seed=-1)
    one = sources.WebDataset(make_tar("one.tar", {"0.png": png(cutout_of(0)), "0.txt": b"x"}))
    with pytest.raises(sources.DatasetError, match="two or more"):
        len(cutouts.Cutouts(one))
