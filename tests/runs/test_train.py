"""A tiny run from scenes to PNGs: what it leaves behind, how it resumes, and what it refuses."""

import dataclasses
import json
import re
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from nova_jax import config as configs
from nova_jax import experiment, generation, weights
from nova_jax.models.text import encoder
from nova_jax.parallel import rules
from nova_jax.parallel.mesh import MeshConfig
from nova_jax.runs import main
from nova_jax.training import checkpoint, loop
from tests import tiny_run


@pytest.fixture(scope="module")
def tiny(once, tmp_path_factory) -> experiment.TrainConfig:
    """The config of the finished run, in a copy of its folder."""
    run = once("tiny_run", tiny_run.train)
    copy = shutil.copytree(run, tmp_path_factory.mktemp("experiment") / "run")
    return dataclasses.replace(tiny_run.config_in(run.parent), run_dir=str(copy))


@pytest.fixture(scope="module")
def finished(tiny) -> experiment.Result:
    return experiment.run(tiny)


def read_log(result: experiment.Result) -> list[dict]:
    return [json.loads(line) for line in (result.directory / "log.jsonl").read_text().splitlines()]


def test_the_run_folder_holds_everything(finished):
    record = json.loads((finished.directory / "config.json").read_text())
    assert record["data"]["latent_shape"] == [1, 4, 4, 4]
    assert record["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(finished.state.params))
    assert record["flops_per_step"] > 0
    assert record["environment"]["device_count"] == jax.device_count()
    assert [line["step"] for line in read_log(finished)] == [1, 2, 3, 4]
    assert (finished.directory / "samples" / "00000004.png").is_file()
    codec, _ = weights.load(finished.directory / generation.CODEC_FOLDER)
    assert codec == tiny_run.TINY_VAE


@pytest.mark.long
def test_the_same_command_with_more_steps_continues(tiny, finished):
    before = read_log(finished)
    longer = experiment.run(dataclasses.replace(tiny, steps=6))
    assert int(longer.state.step) == 6
    assert [line["step"] for line in read_log(longer)] == [1, 2, 3, 4, 5, 6]
    assert read_log(longer)[:4] == before


@pytest.mark.long
def test_a_schedule_that_falls_ends_with_the_run_and_moves_when_the_run_goes_on(tiny, tmp_path):
    falling = dataclasses.replace(tiny.optimizer, schedule="linear")
    config = dataclasses.replace(tiny, optimizer=falling, steps=2, log_every=1, preview=None, run_dir=str(tmp_path))
    result = experiment.run(config)
    longer = experiment.run(dataclasses.replace(config, steps=4))
    rates = [line["learning_rate"] for line in read_log(longer)]
    np.testing.assert_allclose(rates, [falling.ending_at(end).learning_rate(n) for n, end in enumerate((2, 2, 4, 4))])
    assert rates[1] == rates[3] == 0 < rates[2]
    events = (result.directory / "events.jsonl").read_text()
    assert "steps was 2 and is 4: the linear schedule now ends there" in events
    saved = json.loads((result.directory / "config.json").read_text())["config"]
    assert saved["optimizer"]["total_steps"] == 4
    with pytest.raises(ValueError, match=r"steps=6, but the linear schedule ends at optimizer.total_steps=4"):
        experiment.run(dataclasses.replace(config, steps=6, optimizer=falling.ending_at(4)))


@pytest.mark.long
def test_a_run_says_once_what_its_mesh_does_not_divide(tiny, tmp_path):
    mesh = MeshConfig(data=1, tensor=8)
    result = experiment.run(dataclasses.replace(tiny, mesh=mesh, steps=1, preview=None, run_dir=str(tmp_path)))
    events = (result.directory / "events.jsonl").read_text()
    assert events.count("the size 2 of heads does not divide over tensor=8, so it is whole on every device") == 1


@pytest.mark.long
def test_a_picture_depends_on_its_prompt_and_seed_alone(finished):
    trained = generation.load_run(finished.directory)
    settings = generation.SamplingSettings(num_steps=3)
    alone = generation.generate(trained, ["a blue square"], [7], settings)
    prompts = ["a circle"] * 19 + ["a blue square"]
    together = generation.generate(trained, prompts, [*range(19), 7], settings)
    assert alone.shape == (1, 1, 32, 32, 3)
    np.testing.assert_array_equal(alone[0], together[-1])
    other_seed = generation.generate(trained, ["a blue square"], [8], settings)
    assert (alone != other_seed).any()


@pytest.mark.long
def test_a_run_is_read_to_where_its_parts_stay_and_samples_there_what_it_samples_alone(finished):
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).make()
    alone, spread = (generation.load_run(finished.directory, mesh=each) for each in (None, mesh))
    for params in (spread.params, spread.codec_params):
        assert jax.tree.map(lambda leaf: leaf.sharding, params) == rules.shardings(params, mesh)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread.params))
    settings = generation.SamplingSettings(num_steps=2)
    one, many = (generation.generate(run, ["a red circle"], [3], settings).astype(int) for run in (alone, spread))
    assert np.abs(one - many).max() <= 1


@pytest.mark.long
def test_pngs_carry_prompt_and_seed(finished, tmp_path):
    trained = generation.load_run(finished.directory)
    settings = generation.SamplingSettings(num_steps=1, sampler="euler", guidance_scale=1.0)
    pixels = generation.generate(trained, ["ein roter Würfel"], [3], settings)
    [path] = generation.save_pngs(tmp_path, pixels, ["ein roter Würfel"], [3], settings, upscale=2)
    with Image.open(path) as image:
        assert image.size == (64, 64)
        assert image.info["prompt"] == "ein roter Würfel"
        assert (image.info["seed"], image.info["sampler"]) == ("3", "euler")


@pytest.mark.long
def test_a_prompt_that_does_not_fit_is_refused(finished):
    trained = generation.load_run(finished.directory)
    with pytest.raises(encoder.CaptionTooLong, match=r"has 30 words .* and 23 fit"):
        generation.generate(trained, ["x " * 30], [0])


@pytest.mark.long
def test_another_config_in_the_same_folder_is_refused_with_the_differences(tiny, finished):
    changed = configs.override(tiny, ["model.dit.depth=2", "seed=5"])
    with pytest.raises(configs.ConfigError, match=r"model\.dit\.depth was 1 and is 2.*seed was 0 and is 5"):
        experiment.run(changed)


@pytest.mark.long
def test_a_run_from_before_a_field_existed_goes_on_at_its_default_and_is_refused_at_another_value(tiny, finished):
    path = finished.directory / "config.json"
    text = path.read_text()
    record = json.loads(text)
    for part, field in (("dit", "has_palette"), ("dit", "num_tasks"), ("text_encoder", "mlp_ratio")):
        del record["config"]["model"][part][field]
    del record["config"]["objective"]["drop_rates"]
    path.write_text(json.dumps(record))
    with pytest.raises(configs.ConfigError, match=r"num_tasks was 0 and is 2"):
        experiment.run(configs.override(tiny, ["model.dit.num_tasks=2"]))
    experiment.run(tiny)
    for part in ("model", "objective"):
        assert json.loads(path.read_text())["config"][part] == json.loads(text)["config"][part]


@pytest.mark.long
def test_channels_of_codec_and_network_must_agree(tiny, tmp_path):
    changed = configs.override(tiny, ["model.dit.in_channels=6", f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(ValueError, match="reads 6 channels but the autoencoder's latents have 4"):
        experiment.run(changed)


@pytest.mark.long
def test_a_mesh_or_batch_that_does_not_fit_is_refused(tiny):
    with pytest.raises(ValueError, match="needs at least 16 devices, but there are 8"):
        experiment.run(dataclasses.replace(tiny, mesh=MeshConfig(fsdp=16)))
    with pytest.raises(ValueError, match=r"batch_size 12 does not divide.*use 8 or 16"):
        experiment.run(dataclasses.replace(tiny, batch_size=12))


@pytest.mark.long
def test_every_checkpoint_of_a_run_remembers_the_one_that_it_began_with(tiny, finished, tmp_path):
    config = dataclasses.replace(
        tiny, start_from=str(finished.directory), run_dir=str(tmp_path), steps=1, preview=None, keep=9
    )
    newest = checkpoint.origin(finished.directory / "checkpoints")
    experiment.run(config)
    experiment.run(dataclasses.replace(config, steps=2))
    saved = [json.loads(path.read_text())["custom_metadata"] for path in tmp_path.rglob("_CHECKPOINT_METADATA")]
    assert [metadata["origins"] for metadata in saved] == [{"start_from": newest}] * 2


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a run folder"):
        generation.load_run(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize(
    ("argument", "message"),
    [("stepz=3", "tiny: stepz: TrainConfig has no field 'stepz'; it has name, model"), ("steps=many", "expected int")],
)
def test_the_command_line_ends_with_one_sentence(tiny, monkeypatch, argument, message):
    monkeypatch.setattr(sys, "argv", ["tiny", argument])
    with pytest.raises(SystemExit, match=message):
        experiment.main(tiny)


@pytest.mark.long
def test_print_shows_the_resolved_config(tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tiny", "--print", "optimizer.peak=0.5"])
    experiment.main(tiny)
    assert json.loads(capsys.readouterr().out)["optimizer"]["peak"] == 0.5


@pytest.mark.long
@pytest.mark.parametrize(
    "change",
    [
        *(
            "steps=-1",
            "batch_size=0",
            "accumulate=0",
            "seed=-1",
            "seed=4294967296",
            "log_every=0",
            "checkpoint_every=0",
        ),
        *("keep=0", "ema_decay=1", "ema_decay=-0.1", "preview.every=0", "preview.per_prompt=0", "preview.upscale=0"),
    ],
)
def test_a_number_out_of_range_is_named_with_what_is_allowed(tiny, change, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tiny", change])
    path, _, value = change.partition("=")
    name = path.rpartition(".")[2]
    with pytest.raises(SystemExit, match=rf"^tiny: {change}: {name} is {value}\S*; it must (be a whole|lie)"):
        experiment.main(tiny)


@pytest.mark.long
def test_a_run_goes_on_with_the_learning_rate_that_is_advised_after_a_loss_that_is_not_finite(
    tiny, tmp_path, monkeypatch
):
    def diverge(state, *arguments, checkpoints, **options):
        raise loop.NonFiniteLoss("step 3: loss nan.", checkpoints.directory)

    config = dataclasses.replace(tiny, run_dir=str(tmp_path / "run"))
    monkeypatch.setattr(sys, "argv", ["tiny"])
    monkeypatch.setattr(loop, "fit", diverge)
    with pytest.raises(SystemExit, match=r"^tiny: step 3: loss nan\. Run the same command again with") as caught:
        experiment.main(config)
    (advised,) = re.findall(r"optimizer\.\S+=[^\s:]+", str(caught.value.code))
    assert advised == f"optimizer.peak={config.optimizer.peak / 2:g}"
    monkeypatch.setattr(sys, "argv", ["tiny", advised, "optimizer.clip_norm=0.5"])
    monkeypatch.setattr(loop, "fit", lambda state, *arguments, **options: state)
    experiment.main(config)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["config"]["optimizer"]["peak"] == config.optimizer.peak / 2
    events = (tmp_path / "run" / "events.jsonl").read_text()
    assert "optimizer.peak was 0.001 and is 0.0005" in events
    assert "optimizer.clip_norm was 1.0 and is 0.5" in events
    monkeypatch.setattr(sys, "argv", ["tiny", advised, "optimizer.clip_norm=0.5", "optimizer.warmup=7"])
    with pytest.raises(SystemExit, match=r"optimizer\.warmup was 2 and is 7"):
        experiment.main(config)


@pytest.mark.long
def test_a_loss_of_a_run_that_this_one_needs_first_is_not_blamed_on_this_one(tiny, tmp_path, monkeypatch):
    def prepare(config):
        raise loop.NonFiniteLoss("step 3: loss nan.", tmp_path / "vae" / "checkpoints")

    monkeypatch.setattr(sys, "argv", ["tiny"])
    with pytest.raises(SystemExit, match="a run that tiny needs first, whose optimizer is set in Python"):
        experiment.main(tiny, prepare=prepare)


@pytest.mark.long
def test_a_missing_optional_package_is_one_sentence(tiny, monkeypatch):
    def prepare(config):
        raise ImportError("reading Parquet needs pyarrow: pip install 'nova-jax[data]'")

    monkeypatch.setattr(sys, "argv", ["tiny"])
    with pytest.raises(SystemExit, match=r"^tiny: reading Parquet needs pyarrow: pip install"):
        experiment.main(tiny, prepare=prepare)


@pytest.mark.long
def test_a_tilde_is_the_home_folder_on_writing_as_on_reading(tmp_path, monkeypatch):
    home, work = tmp_path / "home", tmp_path / "work"
    monkeypatch.setenv("HOME", str(home))
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    config = tiny_run.make_config(home)  # which writes the autoencoder
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, codec_path="~/vae", cache_path="~/cache"),
        run_dir="~/run",
        steps=0,
    )
    experiment.run(config)
    assert sorted(path.name for path in home.iterdir()) == ["cache", "run", "vae"]
    assert list(work.iterdir()) == []
    monkeypatch.setattr(sys, "argv", ["tiny", "data.cache_path=~/cache", "run_dir=~/run"])
    experiment.main(config)  # the same run
    assert list(work.iterdir()) == []


def test_what_comes_after_a_run_is_done_by_all_processes_and_printed_by_one(tiny, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["experiment"])
    monkeypatch.setattr(main, "run", lambda config: None)
    done = []

    def then(config, result):
        done.append(config)
        print("scored")

    experiment.main(tiny, then)
    assert capsys.readouterr().out == "scored\n"
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    experiment.main(tiny, then)
    assert capsys.readouterr().out == ""
    assert done == [tiny, tiny]


@pytest.mark.parametrize("name", ["run_dir", "teacher", "start_from", "data.cache_path"])
def test_a_bucket_that_is_not_mounted_is_refused(tiny, name):
    with pytest.raises(ValueError, match=rf"{name} is gs://bucket/x; it must be a path, .* mount the bucket"):
        dataclasses.replace(configs.override(tiny, [f"{name}=gs://bucket/x"]))
