import dataclasses
import math

import numpy as np
import pytest

from nova_jax import tasks
from nova_jax.tasks import (
    TINY,
    ColorGuided,
    ImageSettings,
    Inpaint,
    InvalidRequest,
    Outpaint,
    RemoveBackground,
    TextToImage,
    Vary,
)
from tests.tasks import examples

CASES = examples.minimal() | {f"full {name}": request for name, request in examples.full().items()}


def change(name, **fields):
    """The fields at fault when a minimal request is made with other fields."""
    return examples.fields_of(dataclasses.replace, examples.minimal()[name], **fields)


def bounds(name, field, inside, outside):
    return [(name, field, value, True) for value in inside] + [(name, field, value, False) for value in outside]


def test_a_field_takes_both_its_ends_and_nothing_beyond():
    for name, field, value, is_right in [
        *(
            case
            for task in ("TEXT_IMAGE", "COLOR_GUIDED_GENERATION", "IMAGE_VARIATION", "INPAINTING", "OUTPAINTING")
            for text in ("text", "negative_text")
            for case in bounds(task, text, ["a", "é" * 1024], ["", "a" * 1025, 5, b"a", "\ud800"])
        ),
        *bounds("INPAINTING", "mask_prompt", ["a", "a" * 1024], ["", "a" * 1025, 5]),
        *bounds("TEXT_IMAGE", "style", [None, "PHOTOREALISM", "3D_ANIMATED_FAMILY_FILM"], ["photorealism", "", 1]),
        *bounds("TEXT_IMAGE", "control_mode", ["CANNY_EDGE", "SEGMENTATION"], [None, "DEPTH"]),
        *bounds(
            "TEXT_IMAGE", "control_strength", [0, 0.0, 0.5, 1], [-0.001, 1.001, math.nan, math.inf, "0.5", None, True]
        ),
        *bounds("IMAGE_VARIATION", "similarity_strength", [0.2, 1], [0.199, 1.001, math.nan, None, False]),
        *bounds("OUTPAINTING", "mode", ["DEFAULT", "PRECISE"], [None, "SOFT"]),
        *bounds(
            "COLOR_GUIDED_GENERATION", "colors", [["#0a0B0c"], ("#000000",) * 10], [(), ["#000000"] * 11, "#000000"]
        ),
        *bounds("IMAGE_VARIATION", "images", [[examples.picture()] * 5], [(), [examples.picture()] * 6, None]),
    ]:
        assert change(name, **{field: value}) == ([] if is_right else [field])


def test_a_setting_takes_both_its_ends_and_nothing_beyond():
    for field, value, is_right in [
        case[1:]
        for case in (
            *bounds("", "cfg_scale", [1.1, 2, 10, 10.0], [1.099, 1, 10.001, math.nan, "5", None, True]),
            *bounds("", "seed", [0, 2_147_483_646], [-1, 2_147_483_647, 1.0, "1", None, True]),
            *bounds("", "count", [1, 5], [0, 6, 1.0, None]),
            *bounds("", "quality", ["standard", "premium"], ["Premium", None, 1]),
            *bounds("", "width", [None, 64], [64.0, "64", True]),
            *bounds("", "height", [None, 64], [64.0, "64", True]),
        )
    ]:
        assert examples.fields_of(ImageSettings, **{field: value}) == ([] if is_right else [field])


def test_a_color_is_six_hexadecimal_digits():
    for color in [
        "#00000",
        "#0000000",
        "000000",
        "#00000g",
        "#\uff10\uff10\uff10\uff10\uff10\uff10",
        "#000000\n",
        0,
        None,
    ]:
        assert change("COLOR_GUIDED_GENERATION", colors=("#000000", color)) == ["colors[1]"]


def test_the_palette_is_the_bytes_of_its_colors():
    rgb = ColorGuided(text="a", colors=("#0180fF", "#FF0000"), limits=TINY).rgb
    assert rgb.dtype == np.uint8
    assert rgb.tolist() == [[1, 128, 255], [255, 0, 0]]


def test_a_picture_is_eight_bit_rgb_of_an_allowed_size():
    for field in ["image", "condition_image", "reference_image"]:
        for pixels in [
            np.zeros((32, 31, 3), np.uint8),
            np.zeros((257, 257, 3), np.uint8),
            np.zeros((33, 133, 3), np.uint8),
            np.zeros((32, 32, 4), np.uint8),
            np.zeros((32, 32), np.uint8),
            np.zeros((1, 32, 32, 3), np.uint8),
            np.zeros((32, 32, 3), np.float32),
            np.zeros((0, 0, 3), np.uint8),
            "picture.png",
        ]:
            name = {"image": "BACKGROUND_REMOVAL", "condition_image": "TEXT_IMAGE"}.get(
                field, "COLOR_GUIDED_GENERATION"
            )
            assert set(change(name, **{field: pixels})) == {field}


def test_the_sides_of_a_picture_need_not_be_divisible():
    for shape in [(32, 32), (33, 37), (256, 256), (33, 132), (132, 33)]:
        assert change("BACKGROUND_REMOVAL", image=np.zeros((*shape, 3), np.uint8)) == []


def test_every_picture_of_a_variation_is_checked():
    wrong = np.zeros((8, 8, 3), np.uint8)
    assert change("IMAGE_VARIATION", images=(wrong, examples.picture(), None)) == ["images[0]", "images[2]"]


def test_all_problems_are_reported_at_once():
    with pytest.raises(InvalidRequest) as caught:
        Inpaint(
            image=np.zeros((8, 40, 3), np.uint8),
            mask_image=np.full((32, 40), 128, np.uint8),
            text="",
            negative_text="a" * 2000,
            settings=ImageSettings(width=64),
            limits=TINY,
        )
    assert str(caught.value).splitlines() == [
        "image is 40 x 8 pixels; it must be from 32 to 256 pixels on each side.",
        "image is 40 x 8 pixels; it must be within an aspect ratio of 1:4 to 4:1.",
        "mask_image is neither black nor white in 1,280 of its pixels (the first, [128], at row 0 and column 0); "
        "it must be pure black (0) and pure white (255) in every pixel; PNG keeps them, JPEG mixes them.",
        "mask_image is 40 x 32 pixels; it must be 40 x 8 pixels, the size of its image.",
        "text is 0 characters long; it must be a text of 1 to 1,024 characters.",
        "negative_text is 2,000 characters long; it must be a text of 1 to 1,024 characters.",
        "settings.width is 64; it must be left out: the output has the size of its source.",
    ]


def test_all_wrong_settings_are_reported_at_once():
    wrong = {"width": 1.5, "height": "a", "quality": "best", "cfg_scale": 0, "seed": -1, "count": 9}
    assert examples.fields_of(ImageSettings, **wrong) == list(wrong)


def test_inpainting_changes_black_and_outpainting_white():
    for kind, changed in [(Inpaint, 0), (Outpaint, 255)]:
        for corner in [((0, 0), (0, 255)), ((255, 0), (255, 0)), ((255, 255), (255, 255))]:
            request = kind(image=examples.picture(), mask_image=examples.mask(corner), text="a", limits=TINY)
            assert request.mask.dtype == bool
            assert request.mask[:2, :2].tolist() == [[value == changed for value in row] for row in corner]
            assert request.mask[2:].all() == (changed == 0)
            assert request.mask[2:].any() == (changed == 0)


@pytest.mark.parametrize("kind", [Inpaint, Outpaint])
def test_a_mask_is_a_prompt_or_a_picture_and_not_both(kind):
    common = {"image": examples.picture(), "text": "a", "limits": TINY}
    assert kind(**common, mask_prompt="dog").mask is None
    assert examples.fields_of(kind, **common) == ["mask_image"]
    assert examples.fields_of(kind, **common, mask_prompt="dog", mask_image=examples.mask()) == ["mask_image"]
    assert examples.fields_of(kind, **common, mask_prompt="", mask_image=1) == ["mask_prompt", "mask_image"]


def test_a_mask_has_the_size_of_its_image_and_two_values():
    for wrong in [
        np.zeros((40, 32), np.uint8),
        np.full((32, 40), 254, np.uint8),
        np.full((32, 40), 1, np.uint8),
        np.zeros((32, 40), bool),
        np.zeros((32, 40, 3), np.uint8),
    ]:
        for name in ["INPAINTING", "OUTPAINTING"]:
            assert change(name, mask_prompt=None, mask_image=wrong) == ["mask_image"]


def test_inpainting_without_text_removes():
    assert examples.minimal()["INPAINTING"].removes
    assert not examples.full()["INPAINTING"].removes


@pytest.mark.parametrize("name", ["INPAINTING", "OUTPAINTING"])
def test_an_edited_picture_keeps_the_size_of_its_source(name):
    assert change(name, settings=ImageSettings(width=64, height=64)) == ["settings.width", "settings.height"]
    assert examples.minimal()[name].size == (32, 40)


def test_drawn_and_cut_out_pictures_say_their_size():
    sizes = {name: request.size for name, request in examples.full().items() if "PAINTING" not in name}
    assert sizes == dict.fromkeys(sizes, (40, 64)) | {"BACKGROUND_REMOVAL": (32, 40)}


def test_requests_are_frozen_and_hashable():
    for name in CASES:
        request = CASES[name]
        assert len({request, dataclasses.replace(request)}) == 2
        with pytest.raises(dataclasses.FrozenInstanceError):
            request.limits = TINY  # pyright: ignore


def test_defaults_are_the_public_ones():
    assert dataclasses.astuple(ImageSettings()) == (None, None, "standard", 6.5, 12, 1)
    drawn = TextToImage(text="a")
    assert (drawn.style, drawn.control_mode, drawn.control_strength) == (None, "CANNY_EDGE", 0.7)
    assert Vary(images=[examples.picture()], limits=TINY).similarity_strength == 0.7
    assert examples.minimal()["OUTPAINTING"].mode == "DEFAULT"
    assert all(issubclass(kind, tasks.Request) for kind in (TextToImage, Inpaint, Outpaint, RemoveBackground))
