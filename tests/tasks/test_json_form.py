import dataclasses
import json

import numpy as np
import pytest

from nova_jax import tasks
from nova_jax.tasks import CANVAS, TINY, json_form
from tests.tasks import examples

CASES = [(form, task) for form in ("minimal", "full") for task in json_form.FORMS]
PNG = examples.base64_of(examples.file_of(examples.picture()))
MASK = examples.base64_of(examples.file_of(examples.mask()))
INNER = {task: form.parameters for task, form in json_form.FORMS.items()}


def request_of(form, task):
    return getattr(examples, form)()[task]


def paths(body, limits=TINY):
    return examples.fields_of(tasks.parse_request, body, limits)


def body_of(task, config=None, **changes):
    """The JSON of a minimal request with changes to its parameters; a change to None leaves a key out."""
    body = tasks.to_json(examples.minimal()[task])
    inner = {key: value for key, value in (body[INNER[task]] | changes).items() if value is not None}
    return body | {INNER[task]: inner} | ({} if config is None else {"imageGenerationConfig": config})


def test_a_request_survives_json_exactly():
    for form, task in CASES:
        request = request_of(form, task)
        again = tasks.parse_request(json.dumps(tasks.to_json(request)), request.limits)
        assert type(again) is type(request)
        for field in dataclasses.fields(request):
            before, after = getattr(request, field.name), getattr(again, field.name)
            if field.name == "images":
                assert len(before) == len(after)
                for a, b in zip(before, after, strict=True):
                    np.testing.assert_array_equal(a, b)
            elif isinstance(before, np.ndarray):
                assert after.dtype == before.dtype
                np.testing.assert_array_equal(before, after)
            else:
                assert (tuple(after) if field.name == "colors" else after) == before
        assert tasks.to_json(again) == tasks.to_json(request)


def test_the_public_form_is_read_with_the_limits_of_canvas():
    request = tasks.parse_request(
        {
            "taskType": "TEXT_IMAGE",
            "textToImageParams": {"text": "a dog", "negativeText": "cat", "style": "DESIGN_SKETCH"},
            "imageGenerationConfig": {
                "width": 1280,
                "height": 720,
                "quality": "premium",
                "cfgScale": 8.0,
                "seed": 3,
                "numberOfImages": 2,
            },
        }
    )
    assert isinstance(request, tasks.TextToImage)
    assert (request.text, request.negative_text, request.style) == ("a dog", "cat", "DESIGN_SKETCH")
    assert request.settings == tasks.ImageSettings(
        width=1280, height=720, quality="premium", cfg_scale=8.0, seed=3, count=2
    )
    assert (request.limits, request.size) == (CANVAS, (720, 1280))


def test_what_is_left_out_or_null_has_the_default():
    for inner in ({"text": "a"}, {"text": "a", "style": None, "controlStrength": None}):
        for rest in ({}, {"imageGenerationConfig": None}, {"imageGenerationConfig": {"seed": None}}):
            request = tasks.parse_request({"taskType": "TEXT_IMAGE", "textToImageParams": inner} | rest)
            assert dataclasses.replace(request, limits=CANVAS).settings == tasks.ImageSettings()
            assert (request.style, request.control_strength) == (None, 0.7)


def test_try_on_is_refused_with_what_is_offered():
    with pytest.raises(tasks.InvalidRequest) as caught:
        tasks.parse_request({"taskType": "VIRTUAL_TRY_ON", "virtualTryOnParams": {}})
    assert str(caught.value) == (
        "taskType is VIRTUAL_TRY_ON, which is not offered; it must be one of TEXT_IMAGE, COLOR_GUIDED_GENERATION, "
        "IMAGE_VARIATION, INPAINTING, OUTPAINTING, BACKGROUND_REMOVAL, TEXT_VIDEO, MULTI_SHOT_AUTOMATED, "
        "MULTI_SHOT_MANUAL."
    )


@pytest.mark.parametrize("task", [None, 5, "", "TEXT_TO_IMAGE", ["TEXT_IMAGE"]])
def test_an_unknown_task_is_the_only_problem(task):
    assert paths({"taskType": task, "junk": 1}) == ["taskType"]


@pytest.mark.parametrize("source", ["", "{", "[]", "5", "[" * 100_000, '"TEXT_IMAGE"'])
def test_what_is_not_an_object_of_json_is_refused(source):
    assert paths(source) == ["request"]


def test_what_is_needed_and_missing_is_named():
    for task, missing in [
        ("TEXT_IMAGE", ["text"]),
        ("COLOR_GUIDED_GENERATION", ["colors", "text"]),
        ("IMAGE_VARIATION", ["images"]),
        ("INPAINTING", ["image", "maskImage"]),
        ("OUTPAINTING", ["image", "maskImage", "text"]),
        ("BACKGROUND_REMOVAL", ["image"]),
    ]:
        for body in [{}, None]:
            expected = [f"{INNER[task]}.{key}" for key in missing]
            assert paths({"taskType": task, INNER[task]: body}) == expected
            assert paths({"taskType": task}) == expected


@pytest.mark.parametrize("task", json_form.FORMS)
def test_keys_that_do_not_belong_are_named(task):
    other = "textToImageParams" if task == "INPAINTING" else "inPaintingParams"
    body = body_of(task, colour=1, Text="a") | {other: {"text": "a"}, "seed": 1}
    assert paths(body) == [other, "seed", f"{INNER[task]}.colour", f"{INNER[task]}.Text"]


def test_the_key_of_another_task_is_refused_inside_the_parameters():
    assert paths(body_of("INPAINTING", outPaintingMode="PRECISE")) == ["inPaintingParams.outPaintingMode"]


def test_background_removal_takes_no_settings():
    assert paths(body_of("BACKGROUND_REMOVAL", config={"seed": 1})) == ["imageGenerationConfig"]


@pytest.mark.parametrize("task", ["INPAINTING", "OUTPAINTING"])
def test_an_edit_takes_no_size(task):
    expected = ["imageGenerationConfig.width", "imageGenerationConfig.height"]
    assert paths(body_of(task, config={"width": 64, "height": 64, "seed": 1})) == expected


@pytest.mark.parametrize("wrong", [5, "a", [], True])
def test_an_inner_value_that_is_no_object_is_named(wrong):
    assert paths(body_of("TEXT_IMAGE", config=wrong)) == ["imageGenerationConfig"]
    assert "textToImageParams" in paths({"taskType": "TEXT_IMAGE", "textToImageParams": wrong})


def test_all_problems_of_a_body_are_reported_at_once():
    body = {
        "taskType": "IMAGE_VARIATION",
        "junk": 1,
        "imageVariationParams": {
            "images": [PNG, "?", 5, None, PNG[:400], PNG],
            "similarityStrength": "0.5",
            "text": "",
            "style": "MAXIMALISM",
        },
        "imageGenerationConfig": {
            "width": 100,
            "height": "64",
            "cfgScale": 11,
            "seed": 1.5,
            "numberOfImages": 0,
            "fps": 24,
        },
    }
    assert sorted(paths(body)) == sorted(
        [
            "junk",
            "imageGenerationConfig.fps",
            "imageGenerationConfig.height",
            "imageGenerationConfig.cfgScale",
            "imageGenerationConfig.seed",
            "imageGenerationConfig.numberOfImages",
            "imageGenerationConfig.width",
            "imageVariationParams.style",
            *(f"imageVariationParams.images[{i}]" for i in (1, 2, 3, 4)),
            "imageVariationParams.images",
            "imageVariationParams.similarityStrength",
            "imageVariationParams.text",
        ]
    )


def test_what_is_no_picture_in_base64_is_named_once():
    for task, key in [
        ("TEXT_IMAGE", "conditionImage"),
        ("COLOR_GUIDED_GENERATION", "referenceImage"),
        ("INPAINTING", "image"),
        ("OUTPAINTING", "maskImage"),
        ("BACKGROUND_REMOVAL", "image"),
    ]:
        for value in ["", "???", "é", PNG[:-3], f"data:image/png;base64,{PNG}", PNG[:400], "QUJD", 5, [PNG]]:
            (problem,) = examples.problems_of(tasks.parse_request, body_of(task, **{key: value}), TINY)
            assert problem.field == f"{INNER[task]}.{key}"


def test_base64_may_be_broken_into_lines():
    for width in [64, 76]:
        for end in ["\n", "\r\n"]:
            lines = "".join(PNG[i : i + width] + end for i in range(0, len(PNG), width))
            request = tasks.parse_request(body_of("BACKGROUND_REMOVAL", image=lines), TINY)
            np.testing.assert_array_equal(request.image, examples.picture())


def test_a_picture_outside_the_limits_is_named_by_its_path():
    assert paths(body_of("BACKGROUND_REMOVAL", image=PNG), CANVAS) == ["backgroundRemovalParams.image"]


def test_masks_of_json_keep_their_polarity():
    common = {"image": PNG, "maskImage": MASK, "text": "a"}
    inside = tasks.parse_request({"taskType": "INPAINTING", "inPaintingParams": common}, TINY)
    outside = tasks.parse_request({"taskType": "OUTPAINTING", "outPaintingParams": common}, TINY)
    np.testing.assert_array_equal(inside.mask, examples.mask() == 0)
    np.testing.assert_array_equal(outside.mask, examples.mask() == 255)


@pytest.mark.parametrize(
    ("mask", "allowed"),
    [
        (examples.mask().T, "40 x 32 pixels, the size of its image"),
        (np.full((32, 40), 128, np.uint8), "pure black"),
    ],
)
def test_a_mask_of_another_size_or_in_grey_is_refused(mask, allowed):
    body = body_of("OUTPAINTING", maskImage=examples.base64_of(examples.file_of(mask)))
    (problem,) = examples.problems_of(tasks.parse_request, body, TINY)
    assert problem.field == "outPaintingParams.maskImage"
    assert problem.allowed.startswith(allowed)


@pytest.mark.parametrize(
    ("key", "shown"),
    [("size", "size"), ("", "''"), ("\ud83d", r"'\ud83d'"), ("a\nb", r"'a\nb'"), ("x" * 999, "'xxxxx")],
)
def test_an_unknown_key_is_shown_so_that_it_can_be_printed(key, shown):
    (problem,) = examples.problems_of(tasks.parse_request, body_of("BACKGROUND_REMOVAL", **{key: 1}, image=PNG), TINY)
    assert problem.field.startswith(f"backgroundRemovalParams.{shown}")
    assert problem.field.isprintable()
    assert len(problem.field) < 100


def test_only_the_public_tasks_have_json():
    class Other(tasks.RemoveBackground):
        pass

    with pytest.raises(ValueError, match="Other has no public form"):
        tasks.to_json(Other(image=examples.picture(), limits=TINY))


def test_a_large_value_in_a_wrong_place_is_told_in_a_short_line():
    nested = [{"text": [{"text": 10**300}] * 6}] * 6
    body = {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "a"}, "imageGenerationConfig": {"cfgScale": nested}}
    with pytest.raises(tasks.InvalidRequest, match=r"cfgScale is .*text") as refused:
        tasks.parse_request(json.dumps(body), TINY)
    assert max(map(len, str(refused.value).splitlines())) < 400
