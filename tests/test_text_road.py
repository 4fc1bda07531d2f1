"""A frozen text encoder from its folder to images: trained with, drawn from, resumed, and what is refused."""

import dataclasses
import json
import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from data_pipelines import mixture
from nova_jax import cli, experiment, generation
from nova_jax.models.dit import DiT
from nova_jax.models.text import ByteTextEncoder, CaptionTooLong
from nova_jax.models.text.pretrained import T5TextEncoder
from tests import tiny_run
from tests.models.text import tiny_t5

SETTINGS = generation.SamplingSettings(num_steps=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A denoiser that reads the states of a T5, and data that names it."""
    folder = tmp_path_factory.mktemp("road")
    tiny_t5.write_folder(folder / "t5")
    plain = tiny_run.make_config(folder)
    encoder = T5TextEncoder(path=str(folder / "t5"), length=24)
    return dataclasses.replace(
        plain,
        model=DiT(width=16, depth=1, num_heads=2, in_channels=4, patch_size=(1, 1, 1), text_dim=16),
        data=dataclasses.replace(plain.data, text_encoder=encoder),
        steps=20,
        checkpoint_every=10,
        preview=dataclasses.replace(plain.preview, every=20, settings=SETTINGS),
    )


@pytest.fixture(scope="module")
def finished(config):
    return experiment.run(config)


@pytest.fixture(scope="module")
def trained(finished):
    return generation.load_run(finished.directory)


def losses(result):
    lines = [json.loads(line) for line in (result.directory / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.long
def test_a_run_trains_on_states_of_a_frozen_encoder_and_previews(finished, config):
    assert list(losses(finished)) == list(range(1, 21))
    record = json.loads((finished.directory / "config.json").read_text())
    assert record["data"]["text_length"] == 24
    assert record["parameters"] == sum(leaf.size for leaf in _leaves(finished.state.params))
    assert record["flops_per_step"] == 3 * config.batch_size * config.model.flops((1, 4, 4), 24), "T5 costs no step"
    assert (finished.directory / "samples" / "00000020.png").is_file()


def _leaves(tree):
    return [leaf for child in tree.values() for leaf in _leaves(child)] if isinstance(tree, dict) else [tree]


@pytest.mark.long
def test_states_that_are_made_for_every_batch_train_as_those_that_are_kept(finished, config, tmp_path):
    data = dataclasses.replace(config.data, caches_text=False)
    made = experiment.run(dataclasses.replace(config, data=data, run_dir=str(tmp_path / "run"), preview=None))
    kept = losses(finished)
    assert losses(made).keys() == kept.keys()
    np.testing.assert_allclose(list(losses(made).values()), list(kept.values()), rtol=1e-3)  # kept in half precision


@pytest.mark.long
def test_pictures_follow_their_prompt_and_seed(trained, config):
    assert trained.text_encoder == config.data.text_encoder
    trained = trained._replace(params=_away_from_zero(trained.params))
    pixels = generation.generate(trained, ["a red circle", "a blue square", "a red circle"], [3, 3, 3], SETTINGS)
    assert pixels.shape == (3, 1, 32, 32, 3)
    np.testing.assert_array_equal(pixels[0], pixels[2])
    assert (pixels[0] != pixels[1]).any()


def _away_from_zero(params):
    """Parameters that no longer begin at zero, so that every input is seen."""
    rng = np.random.default_rng(0)

    def moved(tree):
        if isinstance(tree, dict):
            return {name: moved(child) for name, child in tree.items()}
        return tree + 0.3 * rng.standard_normal(tree.shape, np.float32)

    return moved(params)


@pytest.mark.long
def test_the_states_that_draw_are_those_that_trained(trained, config):
    batch = next(dataclasses.replace(config.data, caches_text=False).batches(0, 4))
    captions = [sample["caption"] for sample in (config.data.source[i] for i in range(len(config.data.source)))]
    cond, null = generation.encode(trained, captions)
    assert not null.text.any()
    assert null.text_mask.tolist() == [[True] + [False] * 23]
    for states in np.asarray(batch.cond.text):
        assert np.abs(np.asarray(cond.text) - states).max((1, 2)).min() < 1e-4, "no caption has these states"


@pytest.mark.long
def test_an_encoder_whose_folder_has_moved_is_named_when_the_run_is_loaded(finished, trained, config, tmp_path):
    shutil.copytree(config.data.text_encoder.path, tmp_path / "moved")
    encoder = dataclasses.replace(config.data.text_encoder, path=str(tmp_path / "moved"))
    moved = generation.load_run(finished.directory, text_path=encoder.path)
    assert moved.text_encoder == encoder
    for ours, theirs in zip(generation.encode(moved, ["a star"]), generation.encode(trained, ["a star"]), strict=True):
        np.testing.assert_array_equal(ours.text, theirs.text)


@pytest.mark.long
def test_a_prompt_that_does_not_fit_is_refused(trained):
    with pytest.raises(CaptionTooLong, match="has 24 tokens and 23 fit"):
        generation.generate(trained, [" ".join(["red"] * 24)], [0], SETTINGS)


@pytest.mark.long
def test_the_command_line_draws_from_such_a_run_wherever_its_encoder_lies(finished, config, capsys, tmp_path):
    shutil.copytree(config.data.text_encoder.path, tmp_path / "moved")
    pictures = []
    for options in ([], ["--text-encoder", str(tmp_path / "moved")]):
        cli.main(["generate", "--run", str(finished.directory), "a red circle", "--num-steps", "2", *options])
        (path,) = map(pathlib.Path, capsys.readouterr().out.splitlines())
        pictures.append(Image.open(path))
        pictures[-1].load()
        path.unlink()
    assert pictures[0].size == (32, 32)
    assert pictures[0].text["prompt"] == "a red circle"
    np.testing.assert_array_equal(*map(np.asarray, pictures))


@pytest.mark.long
def test_an_encoder_that_is_nowhere_is_one_sentence_on_the_command_line(finished, tmp_path):
    with pytest.raises(SystemExit, match=r"^nova: .*nowhere is no folder of a T5 encoder") as caught:
        cli.main(["generate", "--run", str(finished.directory), "a", "--text-encoder", str(tmp_path / "nowhere")])
    assert "\n" not in str(caught.value.code)


@pytest.mark.long
def test_a_mixture_of_such_data_previews_and_is_drawn_from(config, tmp_path):
    parts = ((config.data, 1), (dataclasses.replace(config.data, seed=1), 1))
    preview = dataclasses.replace(config.preview, every=2)
    mixed = dataclasses.replace(
        config, data=mixture.Mixture(parts=parts), steps=2, run_dir=str(tmp_path / "run"), preview=preview
    )
    result = experiment.run(mixed)
    assert (result.directory / "samples" / "00000002.png").is_file()
    assert generation.load_run(result.directory).text_encoder == config.data.text_encoder


@pytest.mark.long
def test_a_longer_run_goes_on_where_it_stopped(finished, config):
    before = losses(finished)
    longer = experiment.run(dataclasses.replace(config, steps=24, preview=None))
    assert list(losses(longer)) == list(range(1, 25))
    assert {step: loss for step, loss in losses(longer).items() if step <= 20} == before


def test_a_denoiser_of_another_width_is_refused_with_both_widths(config, tmp_path):
    wrong = dataclasses.replace(config, model=config.model.clone(text_dim=8), run_dir=str(tmp_path / "run"))
    with pytest.raises(ValueError, match=r"text_dim=8 and .*gives 16: set model\.text_dim=16"):
        experiment.run(wrong)
    assert not (tmp_path / "run").exists()


def test_data_that_names_another_encoder_than_the_network_trains_is_refused(config, tmp_path):
    words = tiny_run.make_config(tmp_path)
    for encoder in (config.data.text_encoder, ByteTextEncoder()):
        wrong = dataclasses.replace(words, data=dataclasses.replace(words.data, text_encoder=encoder))
        with pytest.raises(ValueError, match=rf"(?s)network trains .* and the data names {type(encoder).__name__}"):
            experiment.run(wrong)


def test_data_whose_captions_nothing_reads_is_refused(config, tmp_path):
    data = dataclasses.replace(config.data, text_encoder=None)
    with pytest.raises(ValueError, match=r"nothing reads the captions.*T5TextEncoder\(path=FOLDER\)"):
        experiment.run(dataclasses.replace(config, data=data, run_dir=str(tmp_path / "run")))
