import dataclasses
import json
import math

import numpy as np
import pytest

from nova_jax import tasks
from nova_jax.tasks import (
    CANVAS,
    REEL,
    TINY,
    TINY_REEL,
    MultiShotAutomated,
    MultiShotManual,
    ShotRequest,
    TextToVideo,
    VideoLimits,
    json_form,
)
from tests.tasks import examples

FRAME = examples.picture(0, 36, 64)
TEXT = "A fox runs. It jumps. 4k."


def minimal():
    return {
        "TEXT_VIDEO": TextToVideo(text="a", limits=TINY_REEL),
        "MULTI_SHOT_AUTOMATED": MultiShotAutomated(text=TEXT, duration_seconds=12, limits=TINY_REEL),
        "MULTI_SHOT_MANUAL": MultiShotManual(shots=[ShotRequest("a")], limits=TINY_REEL),
    }


def full():
    common = {"seed": 7, "dimension": (36, 64), "limits": TINY_REEL}
    return {
        "TEXT_VIDEO": TextToVideo(text="é\n猫", image=FRAME, **common),
        "MULTI_SHOT_AUTOMATED": MultiShotAutomated(text="é" * 4000, duration_seconds=120, **common),
        "MULTI_SHOT_MANUAL": MultiShotManual(
            shots=[ShotRequest("a", FRAME), ShotRequest("b"), ShotRequest("c", FRAME[::-1])], **common
        ),
    }


def change(name, **fields):
    """The fields at fault when a minimal request is made with other fields."""
    return examples.fields_of(dataclasses.replace, minimal()[name], **fields)


def source(pixels=FRAME, kind="PNG", **changes):
    image = {"format": kind.lower(), "source": {"bytes": examples.base64_of(examples.file_of(pixels, kind))}}
    return image | changes


def paths(body, limits=TINY_REEL):
    return examples.fields_of(tasks.parse_request, body, limits)


def test_what_all_videos_share_is_checked_in_each():
    for name in json_form.VIDEO_FORMS:
        for field, inside, outside in [
            ("seed", [0, 2_147_483_646], [-1, 2_147_483_647, 1.0, True, None]),
            ("fps", [24], [25, 24.0, 0, None, "24"]),
            ("dimension", [None, (36, 64), [36, 64]], [(64, 36), "64x36", 36, (36, 64, 3)]),
        ]:
            assert [change(name, **{field: value}) for value in inside] == [[]] * len(inside)
            assert [change(name, **{field: value}) for value in outside] == [[field]] * len(outside)


@pytest.mark.parametrize(
    ("name", "field", "inside", "outside"),
    [
        ("TEXT_VIDEO", "text", ["a", "é" * 512], ["", "a" * 513, None, 5, "\ud800"]),
        ("TEXT_VIDEO", "image", [None, FRAME], [FRAME[1:], FRAME[..., :1], FRAME.astype(float), "a.png"]),
        ("TEXT_VIDEO", "duration_seconds", [6], [12, 0, 6.0, None]),
        ("MULTI_SHOT_AUTOMATED", "text", ["a", "é" * 4000], ["", " ", "a" * 4001, None]),
        ("MULTI_SHOT_AUTOMATED", "duration_seconds", [12, 18, 120], [6, 126, 13, 0, -12, 12.0, None, math.inf]),
        ("MULTI_SHOT_MANUAL", "shots", [[ShotRequest("a")] * 20, (ShotRequest("a"),)], [(), None, "a"]),
        ("MULTI_SHOT_MANUAL", "shots", [], [[ShotRequest("a")] * 21]),
    ],
)
def test_a_field_takes_both_its_ends_and_nothing_beyond(name, field, inside, outside):
    assert [change(name, **{field: value}) for value in inside] == [[]] * len(inside)
    assert [change(name, **{field: value}) for value in outside] == [[field]] * len(outside)


def test_every_shot_is_checked_by_itself():
    shots = [ShotRequest(), ShotRequest("a" * 513, FRAME[1:]), ShotRequest("b"), "c", ShotRequest("", FRAME)]
    expected = ["shots[0].text", "shots[1].text", "shots[1].image", "shots[3]", "shots[4].text"]
    assert change("MULTI_SHOT_MANUAL", shots=shots, seed=-1) == [*expected, "seed"]


def test_a_violation_names_field_value_and_what_is_allowed():
    with pytest.raises(tasks.InvalidRequest) as caught:
        TextToVideo(text="", image=FRAME, fps=30, dimension=(1080, 1920), duration_seconds=5, seed=-1)
    assert str(caught.value).splitlines() == [
        "text is 0 characters long; it must be a text of 1 to 512 characters.",
        "image is 64 x 36 pixels; it must be 1280 x 720 pixels, the size of the video.",
        "duration_seconds is 5; it must be 6; longer videos have more shots.",
        "dimension is (1080, 1920); it must be (720, 1280), height and width, or None.",
        "fps is 30; it must be 24, frames per second.",
        "seed is -1; it must be a whole number from 0 to 2,147,483,646.",
    ]


def test_the_size_and_the_frames_of_a_video():
    request = TextToVideo(text="a", image=np.zeros((720, 1280, 3), np.uint8))
    assert (request.limits, request.size, request.seed, request.fps) == (REEL, (720, 1280), 42, 24)
    assert (REEL.frames, REEL.frames_kept, request.num_frames) == (145, 144, 144)
    film = MultiShotAutomated(text=TEXT, duration_seconds=120)
    assert (len(film.storyboard), film.num_frames) == (20, 2880)
    assert (TINY_REEL.frames, TINY_REEL.frames_kept) == (25, 25)
    assert full()["MULTI_SHOT_MANUAL"].num_frames == 75
    assert full()["MULTI_SHOT_MANUAL"].duration_seconds == 18


def test_the_storyboard_says_what_each_shot_shows():
    (shot,) = full()["TEXT_VIDEO"].storyboard
    assert (shot.text, shot.image is FRAME) == ("é\n猫", True)
    film = minimal()["MULTI_SHOT_AUTOMATED"]
    assert film.storyboard == (ShotRequest("A fox runs. 4k."), ShotRequest("It jumps. 4k."))
    assert isinstance(film, tasks.MultiShot)
    shots = [ShotRequest("a", FRAME), ShotRequest(), ShotRequest(image=FRAME), ShotRequest("b"), ShotRequest()]
    board = MultiShotManual(shots=shots, limits=TINY_REEL).storyboard
    assert [shot.text for shot in board] == ["a", "a", "a", "b", "b"], "a shot without text goes on"
    assert [shot.image is FRAME for shot in board] == [True, False, True, False, False], "a first frame does not"


@pytest.mark.parametrize(
    ("frames", "near"), [(24, "21 or 25"), (26, "25 or 29"), (144, "141 or 145"), (2, "1 or 5"), (0, "1"), (-3, "1")]
)
def test_frames_that_no_autoencoder_codes_are_refused_with_the_nearest(frames, near):
    with pytest.raises(ValueError, match=rf"frames={frames} must be 1 \+ 4k, as the autoencoder codes them: {near}$"):
        VideoLimits(frames=frames)


@pytest.mark.parametrize("wrong", [{"height": 0}, {"width": -1}, {"fps": 0}])
def test_limits_without_pixels_or_time_are_refused(wrong):
    with pytest.raises(ValueError, match="must be 1 or more"):
        VideoLimits(**wrong)


def test_a_request_survives_json_exactly():
    for form in [minimal, full]:
        for name in json_form.VIDEO_FORMS:
            request = form()[name]
            body = tasks.to_json(request)
            again = tasks.parse_request(json.dumps(body), TINY_REEL)
            assert type(again) is type(request)
            assert (again.seed, again.fps, again.size) == (request.seed, request.fps, request.size)
            assert again.duration_seconds == request.duration_seconds
            for a, b in zip(again.storyboard, request.storyboard, strict=True):
                assert a.text == b.text
                np.testing.assert_array_equal(a.image, b.image)
            assert tasks.to_json(again) == body


def test_the_public_form_is_written_as_published():
    assert tasks.to_json(MultiShotAutomated(text="a", duration_seconds=18, seed=1234)) == {
        "taskType": "MULTI_SHOT_AUTOMATED",
        "multiShotAutomatedParams": {"text": "a"},
        "videoGenerationConfig": {"durationSeconds": 18, "fps": 24, "dimension": "1280x720", "seed": 1234},
    }
    shots = [ShotRequest("a"), ShotRequest(), ShotRequest("b", FRAME)]
    body = tasks.to_json(MultiShotManual(shots=shots, limits=TINY_REEL))
    assert body["multiShotManualParams"]["shots"] == [{"text": "a"}, {"text": "a"}, {"text": "b", "image": source()}]
    assert body["videoGenerationConfig"] == {"fps": 24, "dimension": "64x36", "seed": 42}


def test_the_public_form_is_read_with_the_limits_of_reel():
    params = {"text": "a", "images": [source(np.zeros((720, 1280, 3), np.uint8), "JPEG")]}
    config = {"durationSeconds": 6, "fps": 24, "dimension": "1280x720", "seed": 3}
    body = {"taskType": "TEXT_VIDEO", "textToVideoParams": params, "videoGenerationConfig": config}
    request = tasks.parse_request(body)
    assert isinstance(request, TextToVideo)
    assert (request.seed, request.image.shape, request.limits) == (3, (720, 1280, 3), REEL)
    bare = {"taskType": "TEXT_VIDEO", "textToVideoParams": {"text": "a", "images": []}, "videoGenerationConfig": None}
    assert (tasks.parse_request(bare).seed, tasks.parse_request(bare).image) == (42, None)


def test_a_model_offers_pictures_or_videos():
    image = {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "a"}}
    video = {"taskType": "TEXT_VIDEO", "textToVideoParams": {"text": "a"}}
    assert isinstance(tasks.parse_request(video), TextToVideo)
    for body, limits, offered in ((image, TINY_REEL, "TEXT_VIDEO, MULTI_SHOT_AUTOMATED"), (video, TINY, "TEXT_IMAGE,")):
        with pytest.raises(tasks.InvalidRequest, match=f"which is not offered; it must be one of {offered}"):
            tasks.parse_request(body, limits)
    assert isinstance(tasks.parse_request(image, CANVAS), tasks.TextToImage)


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("TEXT_VIDEO", ["textToVideoParams.text"]),
        ("MULTI_SHOT_AUTOMATED", ["multiShotAutomatedParams.text", "videoGenerationConfig.durationSeconds"]),
        ("MULTI_SHOT_MANUAL", ["multiShotManualParams.shots"]),
    ],
)
def test_what_is_needed_and_missing_is_named(name, missing):
    assert paths({"taskType": name}) == missing


def test_a_picture_at_fault_is_named_once():
    for image, fault in [
        (5, ""),
        (source(format="gif"), ".format"),
        ({"source": source()["source"]}, ".format"),
        ({"format": "png"}, ".source"),
        (source(source={"s3Location": {"uri": "s3://bucket/a.png"}}), ".source"),
        (source(source={"bytes": "?"}), ".source.bytes"),
        (source(source={"bytes": 5}), ".source.bytes"),
        (source(FRAME[1:]), ".source.bytes"),
        (source(np.pad(FRAME, ((0, 0), (0, 0), (0, 1)))), ".source.bytes"),  # transparent
        (source(source={"bytes": examples.base64_of(examples.png_header(60_000, 60_000))}), ".source.bytes"),
        (source(source={"bytes": examples.base64_of(examples.png_header(64, 36, bits=16))}), ".source.bytes"),
        (source() | {"name": "a"}, ".name"),
    ]:
        single = {"taskType": "TEXT_VIDEO", "textToVideoParams": {"text": "a", "images": [image]}}
        assert paths(single) == [f"textToVideoParams.images[0]{fault}"]
        shots = [{"text": "a"}, {"text": "b", "image": image}]
        several = {"taskType": "MULTI_SHOT_MANUAL", "multiShotManualParams": {"shots": shots}}
        assert paths(several) == [f"multiShotManualParams.shots[1].image{fault}"]


@pytest.mark.parametrize("images", [source(), [source()] * 2, 5])
def test_one_picture_in_a_list_starts_a_video(images):
    body = {"taskType": "TEXT_VIDEO", "textToVideoParams": {"text": "a", "images": images}}
    assert paths(body) == ["textToVideoParams.images"]


def test_all_problems_of_a_film_are_reported_at_once():
    shots = [{}, {"text": "a" * 513, "pan": 1}, 7, {"text": "b", "image": source(FRAME[1:])}, {"image": None}]
    config = {"durationSeconds": 30, "fps": 25, "dimension": "1920x1080", "seed": -1}
    body = {"taskType": "MULTI_SHOT_MANUAL", "multiShotManualParams": {"shots": shots}, "videoGenerationConfig": config}
    expected = [
        "multiShotManualParams.shots[0].text",
        "multiShotManualParams.shots[1].text",
        "multiShotManualParams.shots[1].pan",
        "multiShotManualParams.shots[2]",
        "multiShotManualParams.shots[3].image.source.bytes",
        "multiShotManualParams.shots[4].text",
        "videoGenerationConfig.durationSeconds",  # it follows from the shots
        "videoGenerationConfig.fps",
        "videoGenerationConfig.dimension",
        "videoGenerationConfig.seed",
    ]
    assert sorted(paths(body | {"junk": 1})) == sorted(["junk", *expected])


@pytest.mark.parametrize("wrong", [5, "a", [], True])
def test_an_inner_value_that_is_no_object_is_named(wrong):
    body = tasks.to_json(minimal()["TEXT_VIDEO"])
    assert paths(body | {"videoGenerationConfig": wrong}) == ["videoGenerationConfig"]
    assert "textToVideoParams" in paths(body | {"textToVideoParams": wrong})
