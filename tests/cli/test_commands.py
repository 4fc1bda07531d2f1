"""The `nova` command: quick help, clear errors, images from a run folder."""

import base64
import dataclasses
import io
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from nova_jax import cli, experiment, generation, weights
from nova_jax.cli import commands
from nova_jax.generation import program
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
    assert all(name in shown for name in commands.COMMANDS)


def test_doctor_prints_versions_and_devices(capsys):
    cli.main(["doctor"])
    facts = json.loads(capsys.readouterr().out)
    assert facts["device_count"] == jax.device_count()
    assert facts["versions"]["jax"] == jax.__version__


def test_doctor_without_the_device_that_is_asked_for_says_what_to_do():
    command = [sys.executable, "-c", "from nova_jax import cli; cli.main(['doctor'])"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "rocm"})
    assert done.returncode == 1
    assert re.fullmatch("nova: JAX finds no device of JAX_PLATFORMS=rocm.*", done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x", "--run", "~/runs/x"],
        ["evaluate", "--run", "~/runs/x"],
        ["bench", "--run", "~/runs/x"],
        ["bench", "compare", "~/runs/x", "~/runs/y"],
        ["weights", "~/runs/x"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_tilde_in_any_option_is_the_home_folder(arguments, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=f"^nova: {tmp_path}/runs/x"):
        cli.main(arguments)


@pytest.mark.long
def test_weights_counts_parameters_and_converts(tmp_path, capsys):
    encoder = ByteTextEncoder(width=8, depth=1, num_heads=2, downsample=4)
    variables = jax.jit(encoder.init)(jax.random.key(0), jax.numpy.zeros((1, 4), int), jax.numpy.ones((1, 4), bool))
    weights.save(encoder, variables["params"], tmp_path / "encoder")
    cli.main(["weights", str(tmp_path / "encoder"), "--out", str(tmp_path / "half"), "--dtype", "float16"])
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    assert f"ByteTextEncoder: {count:,} parameters" in capsys.readouterr().out
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 3 * count


def save_encoder(folder, value):
    """A model folder whose embedding begins with `value`."""
    encoder = ByteTextEncoder(width=8, depth=1, num_heads=2, downsample=4)
    params = jax.jit(encoder.init)(jax.random.key(0), jax.numpy.zeros((1, 4), int), jax.numpy.ones((1, 4), bool))[
        "params"
    ]
    params["embed"]["embedding"] = params["embed"]["embedding"].at[0, 0].set(value)
    weights.save(encoder, params, folder)


def test_weights_refuses_a_dtype_that_makes_a_value_infinite(tmp_path):
    save_encoder(tmp_path / "encoder", 1e5)
    command = ["weights", str(tmp_path / "encoder"), "--out", str(tmp_path / "out"), "--dtype"]
    with pytest.raises(SystemExit, match=r"embed/embedding' holds a value of size 100000.*take the dtype bfloat16"):
        cli.main([*command, "float16"])
    assert not list(tmp_path.glob("out/*"))
    cli.main([*command, "bfloat16"])
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_weights_names_parameters_that_are_not_finite(tmp_path):
    save_encoder(tmp_path / "encoder", float("nan"))
    with pytest.raises(SystemExit, match=r"1 with NaN or infinity: embed/embedding \(1 values\); the file is damaged"):
        cli.main(["weights", str(tmp_path / "encoder"), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


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
    """Paths of an image, of a mask, and of what is neither."""
    folder = tmp_path_factory.mktemp("files")
    paths = {name: str(folder / name) for name in ("image.png", "mask.png", "odd.png", "notes.png", "request.json")}
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    mask = np.full((32, 32), 255, np.uint8)
    mask[8:20, 4:20] = 0
    Image.fromarray(image).save(paths["image.png"])
    Image.fromarray(mask).save(paths["mask.png"])
    Image.fromarray(np.pad(image, ((0, 1), (0, 4), (0, 0)))).save(paths["odd.png"])
    (folder / "notes.png").write_text("no image")
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


@pytest.mark.long
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
        assert len(picture.text["request"]) < 600, "images are left out"


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.usefixtures("sketches")
def test_a_byte_order_mark_is_no_part_of_a_request(runs, files, tmp_path, capsys, monkeypatch):
    text = pathlib.Path(files["request.json"]).read_text()
    (tmp_path / "marked.json").write_text("\ufeff" + text, encoding="utf-8")
    plain = generate(runs[1], f"--request request.json --out {tmp_path}", files, capsys)
    assert generate(runs[1], f"--request {tmp_path}/marked.json --out {tmp_path}", files, capsys) == plain
    monkeypatch.setattr("sys.stdin", io.StringIO("\ufeff" + text))
    assert generate(runs[1], f"--request - --out {tmp_path}", files, capsys) == plain


@pytest.mark.long
def test_prompts_are_drawn_as_ever(runs, files, capsys):
    (path,) = generate(runs[0], "circle --seed 3 --num-steps 2 --upscale 2", files, capsys)
    assert path == pathlib.Path(runs[0]) / "generated" / "circle-seed3.png"
    picture = Image.open(path)
    assert picture.size == (64, 64)
    assert (picture.text["prompt"], picture.text["seed"], picture.text["num_steps"]) == ("circle", "3", "2")


@pytest.fixture
def sketches(monkeypatch):
    """In place of a model's images: random ones that differ with prompt or request, seed and settings."""

    def sketch(*facts):
        return np.random.default_rng(list(repr(facts).encode())).integers(0, 256, (8, 8, 3), np.uint8)

    def generate(trained, prompts, seeds, settings):
        return np.stack([sketch(*facts, settings)[None] for facts in zip(prompts, seeds, strict=True)])

    monkeypatch.setattr(generation, "generate", generate)
    monkeypatch.setattr(generation.images, "draw", lambda trained, request, settings: sketch(request, settings)[None])


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("🦊", "🐋"),
        (f"{'red ' * 15}circle", f"{'red ' * 15}square"),
        ("red circle", "Red, circle!"),
        ("red circle", "red-circle"),
        ("red circle --num-steps 1", "red circle --num-steps 2"),
        ("red circle --sampler euler", "red circle --guidance-scale 1"),
        ("red circle --upscale 2", "red circle"),
        ("red circle --seed 1", "red circle"),
    ],
)
@pytest.mark.usefixtures("sketches")
def test_another_drawing_never_takes_the_name_of_an_earlier_one(first, second, runs, files, tmp_path, capsys):
    def draw(line):
        words, _, options = line.partition(" --")
        options = f"--{options}" * bool(options)
        (path,) = generate(runs[0], f"'{words}' --num-steps 1 --out {tmp_path} {options}", files, capsys)
        return path, path.read_bytes()

    (path, data), (other, _) = draw(first), draw(second)
    assert path != other
    assert path.read_bytes() == data
    assert sorted(tmp_path.iterdir()) == sorted([path, other])
    assert draw(first) == (path, data), "the same image is not written twice"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.long
@pytest.mark.usefixtures("sketches")
def test_all_prompts_of_one_call_have_files_of_their_own(runs, files, tmp_path, capsys):
    prompts = ["'🦊'", "'🐋'", f"'{'red ' * 20}'", f"'{'red ' * 19}'", "circle", "Circle"]
    for option in ("", "--overwrite"):
        paths = generate(
            runs[0], f"{' '.join(prompts)} --count 2 --num-steps 1 {option} --out {tmp_path}", files, capsys
        )
        assert len(set(paths)) == 12
        assert sorted(paths) == sorted(tmp_path.iterdir())
    read = [Image.open(path).text for path in paths]
    assert [(text["prompt"], text["seed"]) for text in read] == [
        (*shlex.split(prompt), seed) for prompt in prompts for seed in ("0", "1")
    ]


@pytest.mark.long
@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize(("run", "line"), [(0, "circle"), (1, TASKS["IMAGE_VARIATION"])], ids=["prompt", "task"])
def test_a_file_that_is_there_is_replaced_only_when_asked(run, line, runs, files, tmp_path, capsys):
    (path,) = generate(runs[run], f"{line} --num-steps 1 --out {tmp_path}", files, capsys)
    drawn = path.read_bytes()
    path.write_bytes(b"mine")
    (other,) = generate(runs[run], f"{line} --num-steps 1 --out {tmp_path}", files, capsys)
    assert other.name == f"{path.stem}-2.png"
    assert (path.read_bytes(), other.read_bytes()) == (b"mine", drawn)
    assert generate(runs[run], f"{line} --num-steps 1 --overwrite --out {tmp_path}", files, capsys) == [path]
    assert path.read_bytes() == drawn


@pytest.mark.long
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


@pytest.mark.long
def test_a_prompt_that_cannot_be_read_is_refused_before_the_first_is_drawn(runs, monkeypatch):
    monkeypatch.setattr(program, "make_draw", lambda *args: pytest.fail("drawn"))
    trained = generation.load_run(runs[0])
    prompts, seeds = ["circle"] * generation.placement.CHUNK, range(generation.placement.CHUNK + 1)
    for wrong, sentence in (("circle " * 99, "fit: shorten it"), ("half \ud83d", r"'half \\ud83d' holds half a char")):
        with pytest.raises(ValueError, match=sentence):
            generation.generate(trained, [*prompts, wrong], seeds)
        with pytest.raises(ValueError, match=sentence):
            generation.generate(trained, ["circle", *prompts], seeds, negative_prompts=[*prompts, wrong])


@pytest.mark.long
@pytest.mark.parametrize(
    ("run", "line", "sentence"),
    [
        (0, "--task remove-background --image image.png", "needs an editing model.*experiments.canvas"),
        (1, "--task remove-background --image odd.png", r"36 x 33 pixels.*sides that 8 divides"),
        (1, "--task text-to-image --text x --width 50", r"--width is 50; .* from 32 to 128 that 8 divides"),
        (1, "--task vary", "--images is missing; it must be 1 to 5 images"),
        (1, "--task inpaint --image image.png", "--mask-image is missing; it must be given, or a mask prompt"),
        (1, "--request nowhere.json", "--request nowhere.json is no file"),
        (1, "--request notes.png", "request is not JSON"),
        (1, "--request request.json --text x", "--text beside --request"),
        (1, "--task text-to-image --text x --guidance-scale 3", "--cfg-scale"),
        (1, "--task remove-background --image image.png --num-steps 3", "--num-steps does nothing here"),
        (1, "x --text y", "--text says nothing about prompts"),
        (1, "x --request request.json", "prompts and --request given"),
        (1, "", "nothing given"),
        (0, "x --seed -1", "--seed is -1; it must be a whole number from 0 to 4,294,967,295"),
        (0, "x --seed 4294967296", "--seed is 4294967296; it must be a whole number from 0 to 4,294,967,295"),
        (0, "x --seed 4294967295 --count 2", "--seed is 4294967295; .* from 0 to 4,294,967,294"),
        (0, "x 'half \udce9'", r"the prompt 'half \\udce9' holds half a character, or bytes that are not UTF-8"),
        (1, "--task text-to-image --text 'half \udce9'", "--text is a text with half a surrogate pair"),
        (0, "x --count 0", "--count is 0; it must be a whole number from 1 to 10,000"),
        (0, "x --count 4000000000", "--count is 4000000000; it must be a whole number from 1 to 10,000"),
        (0, "x --upscale 0", "--upscale is 0; it must be a whole number from 1 to 64"),
        (1, "--task text-to-image --text x --upscale -2", "--upscale is -2; it must be a whole number from 1 to 64"),
        (1, "--task text-to-image --text x --seed 2147483647", "--seed is 2147483647; .* from 0 to 2,147,483,646"),
        (1, "--task text-to-image --text x --count 6", "--count is 6; it must be a whole number from 1 to 5"),
        (0, "x --num-steps 0", "num_steps is 0; it must be at least 1"),
        (0, "x --num-steps 100000000000", "num_steps is 100000000000; it must be at most 10,000"),
        (0, "x --out image.png", r"nothing can be written to .*image\.png, as .*image\.png is no folder"),
        (1, "--task text-to-image --text x --out image.png", r"image\.png is no folder: give another one with --out"),
        (0, "x --guidance-scale nan", "guidance_scale is nan; it must be 0 or more"),
        (0, "x --guidance-scale inf", "guidance_scale is inf; it must be 0 or more"),
        (0, "x --guidance-interval 0.7 0.2", "guidance_interval is 0.7 0.2; it must be two times"),
        (0, "x --guidance-interval -1 nan", "guidance_interval is -1.0 nan; it must be two times"),
    ],
)
def test_what_a_user_gets_wrong_is_one_sentence(run, line, sentence, runs, files, capsys):
    said = refusal(runs[run], line, files, capsys)
    assert re.match(f"nova: .*{sentence}", said)
    assert "\n" not in said
