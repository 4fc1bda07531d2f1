import pytest

from nova_jax.tasks import CANVAS, TINY, ImageSettings, Limits, TextToImage
from tests.tasks import examples


def fields_for(width, height, limits):
    settings = ImageSettings(width=width, height=height)
    return examples.fields_of(TextToImage, text="a", settings=settings, limits=limits)


@pytest.mark.parametrize(
    ("width", "height"), [(320, 320), (320, 1280), (1280, 320), (2048, 2032), (4080, 1024), (1024, 4080)]
)
def test_canvas_draws_every_size_up_to_its_ends(width, height):
    assert fields_for(width, height, CANVAS) == []


@pytest.mark.parametrize(("side", "is_right"), [(304, False), (320, True), (321, False), (4096, True), (4112, False)])
def test_canvas_draws_sides_of_320_to_4096_that_16_divides(side, is_right):
    assert CANVAS.is_side(side) == is_right


def test_canvas_draws_no_size_beyond_its_ends():
    for width, height, faults in [
        (304, 320, ["settings.width"]),
        (320, 304, ["settings.height"]),
        (4112, 1040, ["settings.width"]),
        (328, 320, ["settings.width"]),
        (320, 321, ["settings.height"]),
        (320, 1296, ["settings.width"]),
        (1296, 320, ["settings.width"]),
        (2048, 2048, ["settings.width"]),
        (0, -16, ["settings.width", "settings.height", "settings.width"]),
    ]:
        assert fields_for(width, height, CANVAS) == faults


def test_four_million_pixels_are_the_first_too_many():
    assert CANVAS.pixel_bound == 2048 * 2048
    assert not CANVAS.refusals_of_shape(2047, 2049)
    assert CANVAS.refusals_of_shape(2048, 2048) == ["below 4,194,304 pixels in all"]


@pytest.mark.parametrize(
    ("side", "is_right"), [(24, False), (32, True), (36, False), (40, True), (256, True), (264, False)]
)
def test_tiny_limits_are_their_own(side, is_right):
    assert (fields_for(side, 64, TINY) == []) == is_right


def test_a_size_left_out_is_the_default_of_the_limits():
    assert TextToImage(text="a").size == (1024, 1024)
    assert TextToImage(text="a", limits=TINY).size == (64, 64)
    assert TextToImage(text="a", limits=TINY, settings=ImageSettings(width=128)).size == (64, 128)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_side": 0},
        {"min_side": 5000},
        {"multiple": 0},
        {"max_aspect": 0.5},
        {"max_side": 512},
        {"multiple": 7},
        {"pixel_bound": 1024 * 1024},
    ],
)
def test_limits_that_contradict_themselves_are_refused(wrong):
    with pytest.raises(ValueError, match="must be"):
        Limits(**wrong)
