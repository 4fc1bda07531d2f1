"""`nova generate` with a video run: MP4 files that know their request, and errors that name what was typed."""

import dataclasses
import io
import json
import os
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nova_jax import cli, generation, media, tasks
from nova_jax.diffusion import FlowMatching, GivenFrames
from nova_jax.models.dit import DiT
from nova_jax.models.text_to_latent import TextToLatent
from nova_jax.models.vae import VAE
from nova_jax.types import Conditioning
from tests import tiny_run

av = pytest.importorskip("av")

CODEC = VAE(
    latent_channels=4, width=8, width_multipliers=(1, 1, 1), halves_time=(True, True), num_blocks=1, patch_size=2
)
DRAW_STREAM = generation.videos.draw_stream
FAST = "--sampler euler --num-steps 2 --guidance-scale 1"
VIDEO = f"--task text-to-video --text 'a red circle moves left' --seed 5 {FAST}"
FILM = f"--task multi-shot --text 'A fox runs. It stops. 4k.' --duration-seconds 12 {FAST}"
LINE = re.compile(r"(.*\.mp4)  (\d+) frames  (\d+\.\d\d) s")


def filled(forms):
    """Random numbers in the form of a model's parameters."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda form: 0.2 * rng.standard_normal(form.shape, np.float32), forms)


def shades(trained, request, settings):
    """Stands in for `draw_stream`: frames that tell seed, shot and time, in chunks as latents are decoded."""
    del trained, settings
    for shot in range(len(request.storyboard)):
        for start in (0, 1, 5):
            times = np.arange(start, start + (4 if start else 1))
            values = np.stack([20 * times, 0 * times + 60 * shot, 0 * times + 10 * request.seed], axis=-1)
            yield np.broadcast_to(values[:, None, None].astype(np.uint8), (len(times), 32, 32, 3))


@pytest.fixture(scope="module")
def trained():
    """A model that has learnt nothing, of clips of 9 frames of 32 x 32 pixels."""
    network = TextToLatent(
        dit=DiT(width=16, depth=1, num_heads=2, in_channels=4, patch_size=(1, 1, 1), text_dim=8, num_frame_roles=1),
        text_encoder=tiny_run.ENCODER,
    )
    ids, mask = map(jnp.asarray, tiny_run.ENCODER.null(1))
    shape = CODEC.latent_shape(9, 32, 32)
    cond = Conditioning(
        text_ids=ids,
        text_mask=mask,
        frames=jnp.zeros((1, 3, *shape[1:])),
        frame_times=jnp.zeros((1, 3)),
    )
    forms = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.zeros(1), cond)["params"]
    return generation.TrainedRun(
        network=network,
        params=filled(forms),
        objective=FlowMatching(given=GivenFrames()),
        codec=CODEC,
        codec_params=filled(jax.eval_shape(CODEC.init, jax.random.key(1))),
        latent_shape=shape,
        text_encoder=tiny_run.ENCODER,
        step=7,
    )


@pytest.fixture
def generate(trained, tmp_path, monkeypatch, capsys):
    """Runs `nova generate` in an empty folder; the (path, frames, seconds) that it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(generation, "load_run", lambda run, **options: trained)
    monkeypatch.setattr(generation, "mesh_for", lambda run, mesh: None)
    monkeypatch.setattr(generation.videos, "draw_stream", shades)

    def run(line):
        cli.main(["generate", "--run", "run", *shlex.split(line)])
        printed = [LINE.fullmatch(line).groups() for line in capsys.readouterr().out.splitlines()]
        return [(pathlib.Path(path), int(frames), float(seconds)) for path, frames, seconds in printed]

    return run


@pytest.fixture
def refusal(generate):
    """What `nova generate` says when it fails."""

    def run(line):
        with pytest.raises(SystemExit) as caught:
            generate(line)
        return str(caught.value.code)

    return run


def frames_of(path):
    with av.open(os.fspath(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_text_becomes_a_video_that_knows_its_request(generate, trained):
    ((path, frames, seconds),) = generate(f"{VIDEO} --output clips/a.mp4")
    assert (path, frames, seconds) == (pathlib.Path("clips/a.mp4"), 9, 0.38)
    said = media.read_metadata(path)
    assert (said["prompt"], said["seed"], said["run"], said["step"]) == ("a red circle moves left", "5", "run", "7")
    assert json.loads(said["request"])["textToVideoParams"] == {"text": "a red circle moves left"}
    assert json.loads(said["sampling"])["num_steps"] == 2
    request = tasks.parse_request(said["request"], generation.videos.limits_of(trained))
    drawn = np.concatenate([*shades(trained, request, None)])
    assert np.abs(frames_of(path).astype(int) - drawn).max() <= 4


@pytest.mark.long
def test_a_model_draws_what_the_file_shows(generate, trained, monkeypatch):
    monkeypatch.setattr(generation.videos, "draw_stream", DRAW_STREAM)
    generate(f"{VIDEO} --output a.mp4")
    request = tasks.parse_request(media.read_metadata("a.mp4")["request"], generation.videos.limits_of(trained))
    settings = generation.SamplingSettings(sampler="euler", num_steps=2, guidance_scale=1.0)
    drawn = np.concatenate([*DRAW_STREAM(trained, request, settings)])
    luminance = [0.2126, 0.7152, 0.0722]  # BT.709; colours are stored at half the resolution
    assert np.abs((frames_of("a.mp4") - drawn.astype(float)) @ luminance).mean() < 5


def test_a_name_holds_task_text_and_seed_and_pixels_may_become_squares(generate):
    ((path, _, _),) = generate(f"{VIDEO} --upscale 2")
    assert re.fullmatch("text-to-video-a-red-circle-moves-left-[0-9a-f]{8}-seed5.mp4", path.name)
    assert path.parent == pathlib.Path("run/generated")
    assert frames_of(path).shape == (9, 64, 64, 3)
    ((other, _, _),) = generate(f"{VIDEO} --out elsewhere --num-steps 1")
    assert other.parent == pathlib.Path("elsewhere")
    assert other.name != path.name


def test_a_first_frame_and_a_request_file_make_the_same_video(generate, trained, monkeypatch):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(picture).save("start.png")
    generate(f"{VIDEO} --image start.png --output a.mp4")
    request = tasks.TextToVideo(
        text="a red circle moves left", image=picture, seed=5, limits=generation.videos.limits_of(trained)
    )
    text = json.dumps(tasks.to_json(request))
    pathlib.Path("request.json").write_text(text)
    generate(f"--request request.json {FAST} --output b.mp4")
    assert pathlib.Path("a.mp4").read_bytes() == pathlib.Path("b.mp4").read_bytes()
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    generate(f"--request - {FAST} --output c.mp4")
    assert pathlib.Path("a.mp4").read_bytes() == pathlib.Path("c.mp4").read_bytes()
    said = media.read_metadata("a.mp4")["request"]
    assert "32 x 32 pixels, sha256" in said
    assert len(said) < 500, "the image is left out"


def test_a_film_is_a_file_for_each_shot_and_one_of_all(generate):
    found = generate(f"{FILM} --output film")
    assert found == [
        (pathlib.Path("film/shot_0001.mp4"), 9, 0.38),
        (pathlib.Path("film/shot_0002.mp4"), 9, 0.38),
        (pathlib.Path("film/output.mp4"), 18, 0.75),
    ]
    shots = [frames_of(path) for path, _, _ in found[:2]]
    np.testing.assert_array_equal(frames_of("film/output.mp4"), np.concatenate(shots))
    prompts = [media.read_metadata(path)["prompt"] for path, _, _ in found]
    assert prompts == ["A fox runs. 4k.", "It stops. 4k.", "A fox runs. It stops. 4k."]
    assert {media.read_metadata(path)["seed"] for path, _, _ in found} == {"42"}


def test_a_list_of_shots_comes_from_a_file(generate, trained):
    shots = [tasks.ShotRequest("a", np.zeros((32, 32, 3), np.uint8)), tasks.ShotRequest("b")]
    request = tasks.MultiShotManual(shots=shots, seed=3, limits=generation.videos.limits_of(trained))
    pathlib.Path("film.json").write_text(json.dumps(tasks.to_json(request)))
    found = generate(f"--request film.json {FAST}")
    assert [path.name for path, _, _ in found] == ["shot_0001.mp4", "shot_0002.mp4", "output.mp4"]
    assert re.fullmatch("multi-shot-a-b-[0-9a-f]{8}-seed3", found[0][0].parent.name)
    assert media.read_metadata(found[2][0])["prompt"] == "a b"


def test_prompts_become_a_video_for_each_seed(generate):
    found = generate(f"'a red circle' 'a blue square' --count 2 --seed 3 {FAST}")
    assert [re.sub("-[0-9a-f]{8}-", "-", path.name) for path, _, _ in found] == [
        f"text-to-video-{text}-seed{seed}.mp4" for text in ("a-red-circle", "a-blue-square") for seed in (3, 4)
    ]


def test_a_video_or_film_that_is_there_is_replaced_only_when_asked(generate, refusal):
    ((path, _, _),) = generate(VIDEO)
    drawn = path.read_bytes()
    assert generate(VIDEO)[0][0] == path, "the same video is not kept twice"
    path.write_bytes(b"mine")
    ((other, _, _),) = generate(VIDEO)
    assert other.name == f"{path.stem}-2.mp4"
    assert (path.read_bytes(), other.read_bytes()) == (b"mine", drawn)
    assert generate(f"{VIDEO} --overwrite")[0][0] == path
    assert path.read_bytes() == drawn
    films = [generate(FILM)[0][0].parent.name for _ in range(2)]
    assert films[1] == f"{films[0]}-2"
    for line, output in ((VIDEO, "a.mp4"), (FILM, "film")):
        generate(f"{line} --output {output}")
        assert f"--output {output} is there already" in refusal(f"{line} --output {output}")
        generate(f"{line} --output {output} --overwrite")


def test_a_shorter_film_leaves_no_shot_of_the_longer_one_that_it_replaces(generate):
    longer = FILM.replace("duration-seconds 12", "duration-seconds 18")
    assert len(generate(f"{longer} --output film")) == 4
    pathlib.Path("film/shot_notes.mp4").touch()
    found = generate(f"{FILM} --output film --overwrite")
    there = {path.name for path in pathlib.Path("film").iterdir()}
    assert there == {path.name for path, _, _ in found} | {"shot_notes.mp4"}


def test_numbers_out_of_range_are_named_as_they_were_typed(refusal):
    assert refusal("a --seed -1") == "nova: --seed is -1; it must be a whole number from 0 to 4,294,967,295."
    assert (
        refusal("a --seed 2147483647")
        == "nova: --seed is 2147483647; it must be a whole number from 0 to 2,147,483,646."
    )
    assert "--count is 0; it must be a whole number from 1" in refusal("a --count 0 --output a.mp4")
    assert "--upscale is 0; it must be a whole number from 1 to 64" in refusal(f"{FILM} --upscale 0")


def test_all_problems_of_the_options_are_named_by_what_was_typed(refusal):
    Image.fromarray(np.zeros((16, 32, 3), np.uint8)).save("small.png")
    said = refusal("--task text-to-video --image small.png --seed -1 --count 2 --colors '#000000'")
    assert said.splitlines() == [
        "nova: --count is no option of text-to-video; it must be one of --text, --image, --seed.",
        "--colors is no option of text-to-video; it must be one of --text, --image, --seed.",
        "--image small.png is 32 x 16 pixels; it must be 32 x 32 pixels, the size of the video.",
        "--text is missing; it must be a text of 1 to 512 characters.",
        "--seed is -1; it must be a whole number from 0 to 2,147,483,646.",
    ]
    said = refusal("--task multi-shot --text a")
    assert "--duration-seconds is missing; it must be a whole number from 12 to 120 that 6 divides." in said
    assert "--image no.png is no file that can be read" in refusal(f"{VIDEO} --image no.png")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{VIDEO} --output a.gif", "--output a.gif must end in .mp4"),
        (f"{FILM} --output a.mp4", "--output a.mp4 must be a folder: a film is a file for each shot, and output.mp4"),
        ("a b --output a.mp4", "is one name, and 2 videos are asked for"),
        ("--task inpaint --text a", "--task inpaint draws images, and this run draws videos"),
        ("--request no.json", "--request no.json is no file that can be read"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(refusal, monkeypatch, line, said):
    monkeypatch.setattr(generation.videos, "draw_stream", lambda *a: pytest.fail("drawn"))
    assert said in refusal(line)


def test_a_request_for_pictures_is_refused_with_what_is_offered(refusal):
    body = {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "a"}}
    pathlib.Path("request.json").write_text(json.dumps(body))
    assert "TEXT_IMAGE, which is not offered; it must be one of TEXT_VIDEO" in refusal("--request request.json")


@pytest.mark.parametrize(("line", "what"), [(VIDEO, "--task text-to-video"), ("a --output a.mp4", "--output")])
def test_a_run_that_draws_pictures_draws_no_videos(refusal, trained, monkeypatch, line, what):
    still = trained._replace(latent_shape=(1, *trained.latent_shape[1:]))
    monkeypatch.setattr(generation, "load_run", lambda run, **options: still)
    assert f"nova: {what} is for videos, and this run draws images" in refusal(line)


def test_a_video_that_cannot_be_drawn_to_its_end_leaves_no_file(refusal, monkeypatch):
    def breaks(trained, request, settings):
        yield np.zeros((4, 32, 32, 3), np.uint8)
        raise FloatingPointError("step 3 ended in NaN")

    monkeypatch.setattr(generation.videos, "draw_stream", breaks)
    assert refusal(f"{VIDEO} --output a.mp4") == "nova: step 3 ended in NaN"
    assert list(pathlib.Path().rglob("*.mp4*")) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_sentence(refusal):
    os.symlink("/dev/full", "a.mp4.partial")
    assert "no space is left on the disk: free some" in refusal(f"{VIDEO} --output a.mp4")
    assert list(pathlib.Path().rglob("*.mp4*")) == []


def test_a_shot_of_full_size_shows_one_frame_less_than_is_drawn(generate, trained, monkeypatch):
    limits = dataclasses.replace(tasks.TINY_REEL, height=32, width=32, frames=145)

    def draws(trained, request, settings):
        for _ in request.storyboard:
            yield np.zeros((144, 32, 32, 3), np.uint8)

    monkeypatch.setattr(generation.videos, "limits_of", lambda trained: limits)
    monkeypatch.setattr(generation.videos, "check", lambda trained, request: None)
    monkeypatch.setattr(generation.videos, "draw_stream", draws)
    assert generate(f"{VIDEO} --output a.mp4") == [(pathlib.Path("a.mp4"), 144, 6.0)]
    assert [frames for _, frames, _ in generate(f"{FILM} --output film")] == [144, 144, 288]
