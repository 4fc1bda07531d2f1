"""The `nova` command: quick help, clear errors, pictures from a run folder."""

import base64
import dataclasses
import io
import json
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from nova_jax import cli, experiment, weights
from nova_jax.models.text import ByteTextEncoder
from nova_jax.training import checkpoint
from tests import tiny_canvas


def test_help_loads_neither_jax_nor_flax():
    code = "import sys; from nova_jax import cli; print(sorted({'jax', 'flax', 'orbax', 'grain'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_doctor_prints_versions_and_devices(capsys):
    cli.main(["doctor"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["device_count"] == jax.device_count()
    assert facts["versions"]["jax"] == jax.__version__


def test_weights_counts_parameters_and_converts(tmp_path, capsys):
    encoder = ByteTextEncoder(width=8, depth=1, num_heads=2, downsample=4)
    variables = encoder.init(jax.random.key(0), jax.numpy.zeros((1, 4), int), jax.numpy.ones((1, 4), bool))
    weights.save(encoder, variables["params"], tmp_path / "encoder")
    cli.main(["weights", str(tmp_path / "encoder"), "--out", str(tmp_path / "half"), "--dtype", "float16"])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert f"ByteTextEncoder: {count:,} parameters" in capsys.readouterr().out
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 3 * count


@pytest.mark.parametrize(
    "arguments", [["generate", "a circle", "--run", "/nowhere"], ["weights", "/nowhere"]], ids=["generate", "weights"]
)
def test_a_missing_folder_is_one_sentence_and_a_failure(arguments):
    with pytest.raises(SystemExit, match="nova: /nowhere") as caught:
        cli.main(arguments)
    assert caught.value.code not in (0, None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of an untrained text-to-image run and of an untrained editing run."""
    plain, editing = tiny_canvas.make_configs(tmp_path_factory.mktemp("runs"))
    return [untrained(config, data=plain.data) for config in (plain, editing)]


def untrained(config, **changes):
    """The folder of a run that starts and saves."""
    result = experiment.run(dataclasses.replace(config, steps=0, start_from=None, **changes))
    with checkpoint.Checkpoints(result.directory / "checkpoints") as checkpoints:
        checkpoints.save(0, result.state, {"position": 0})
    return str(result.directory)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of a picture, of a mask, and of what is neither."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: str(folder / name) for name in ("image.png", "mask.png", "odd.png", "notes.png", "request.json")}
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mask = np.full((32, 32), 255, np.uint8)
    mask[8:20, 4:20] = 0
    Image.fromarray(image).save(paths["image.png"])
    Image.fromarray(mask).save(paths["mask.png"])
    Image.fromarray(np.pad(image, ((0, 1), (0, 4), (0, 0)))).save(paths["odd.png"])
    (folder / "notes.png").write_text("no picture")
    encoded = {n: base64.b64encode((folder / f"{n}.png").read_bytes()).decode() for n in ("image", "mask")}
    parameters = {"image": encoded["image"], "maskImage": encoded["mask"], "text": "a red circle"}
    config = {"cfgScale": 2.0, "seed": 5, "numberOfImages": 2}
    request = {"taskType": "INPAINTING", "inPaintingParams": parameters, "imageGenerationConfig": config}
    (folder / "request.json").write_text(json.dumps(request))
    return paths


INPAINT = (
    "--task inpaint --image image.png --mask-image mask.png --text 'a red circle' --cfg-scale 2 --seed 5 --count 2"
)
TASKS = {
    "INPAINTING": INPAINT,
    "OUTPAINTING": "--task outpaint --image image.png --mask-image mask.png --text x --mode PRECISE",
    "BACKGROUND_REMOVAL": "--task remove-background --image image.png",
    "TEXT_IMAGE": "--task text-to-image --text x --condition-image image.png --control-mode SEGMENTATION "
    "--control-strength 0.5 --negative-text y --width 32 --height 32",
    "IMAGE_VARIATION": "--task vary --images image.png image.png --similarity-strength 0.9",
    "COLOR_GUIDED_GENERATION": "--task color-guided --colors '#ff0000' '#00FF00' --text x --reference-image image.png",
}


def generate(run, line, files, capsys):
    """Runs `nova generate`; the paths that it prints."""
    words = [files.get(word, word) for word in shlex.split(line)]
    cli.main(["generate", "--run", run, *words])
    return [pathlib.Path(line) for line in capsys.readouterr().out.splitlines()]


def refusal(run, line, files, capsys):
    """What `nova generate` says when it fails."""
    with pytest.raises(SystemExit) as caught:
        generate(run, line, files, capsys)
    return str(caught.value.code)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_writes_pictures_that_know_their_request(task, runs, files, capsys):
    paths = generate(runs[1], TASKS[task], files, capsys)
    seeds = {"INPAINTING": [5, 6], "BACKGROUND_REMOVAL": [0]}.get(task, [12])
    for path, seed in zip(paths, seeds, strict=True):
        picture = Image.open(path)
        assert picture.size == (32, 32)
        assert picture.mode == ("RGBA" if task == "BACKGROUND_REMOVAL" else "RGB")
        assert picture.text["run"] == runs[1]
        assert picture.text["seed"] == str(seed)
        request = json.loads(picture.text["request"])
        assert request["taskType"] == task
        assert len(picture.text["request"]) < 600, "pictures are left out"


def test_a_request_from_a_file_from_standard_input_and_from_options_is_one(runs, files, capsys, monkeypatch):
    by_options = generate(runs[1], INPAINT, files, capsys)
    by_file = generate(runs[1], "--request request.json", files, capsys)
    assert by_options == by_file
    assert re.fullmatch("inpaint-a-red-circle-[0-9a-f]{8}-seed5.png", by_file[0].name)
    before = [path.read_bytes() for path in by_file]
    monkeypatch.setattr("sys.stdin", io.StringIO(pathlib.Path(files["request.json"]).read_text()))
    assert generate(runs[1], "--request -", files, capsys) == by_file
    assert [path.read_bytes() for path in by_file] == before
    pixels, source, mask = (np.asarray(Image.open(p)) for p in (by_file[0], files["image.png"], files["mask.png"]))
    np.testing.assert_array_equal(pixels[mask == 255], source[mask == 255])


def test_prompts_are_drawn_as_ever(runs, files, capsys):
    (path,) = generate(runs[0], "circle --seed 3 --num-steps 2 --upscale 2", files, capsys)
    assert path == pathlib.Path(runs[0]) / "generated" / "circle-seed3.png"
    picture = Image.open(path)
    assert picture.size == (64, 64)
    assert (picture.text["prompt"], picture.text["seed"], picture.text["num_steps"]) == ("circle", "3", "2")


def test_all_problems_of_a_task_are_named_at_once_by_their_options(runs, files, capsys):
    line = "--task inpaint --image notes.png --mask-image nowhere.png --cfg-scale 50 --colors '#ff0000' --seed -1"
    said = refusal(runs[1], line, files, capsys).splitlines()
    assert [sentence.removeprefix("nova: ").split()[0] for sentence in said] == [
        "--colors",
        "--mask-image",
        "--cfg-scale",
        "--seed",
        "--image",
    ]
    assert f"--image {files['notes.png']} is in neither format; it must be a PNG or JPEG." in said


@pytest.mark.parametrize(
    ("run", "line", "sentence"),
    [
        (0, "--task remove-background --image image.png", "needs an editing model.*experiments.canvas"),
        (1, "--task remove-background --image odd.png", r"36 x 33 pixels.*sides that 8 divides"),
        (1, "--task text-to-image --text x --width 50", r"--width is 50; .* from 32 to 128 that 8 divides"),
        (1, "--task vary", "--images is missing; it must be 1 to 5 pictures"),
        (1, "--task inpaint --image image.png", "--mask-image is missing; it must be given, or a mask prompt"),
        (1, "--request nowhere.json", "--request nowhere.json is no file"),
        (1, "--request notes.png", "request is not JSON"),
        (1, "--request request.json --text x", "--text beside --request"),
        (1, "--task text-to-image --text x --guidance-scale 3", "--cfg-scale"),
        (1, "--task remove-background --image image.png --num-steps 3", "--num-steps does nothing here"),
        (1, "x --text y", "--text says nothing about prompts"),
        (1, "x --request request.json", "prompts and --request given"),
        (1, "", "nothing given"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(run, line, sentence, runs, files, capsys):
    said = refusal(runs[run], line, files, capsys)
    assert re.match(f"nova: .*{sentence}", said)
    assert "\n" not in said
