"""The experiment on captioned images: its autoencoder reads what the cache would, corrupt images and all."""

import dataclasses
import functools
import json

import numpy as np
import PIL.Image
import pytest

from data_pipelines import autoencoders, loader, sources
from experiments import emoji, image_vae
from nova_jax import config as configs
from tests.tiny_run import TINY_VAE


@pytest.fixture
def folder(tmp_path):
    """Twelve images, the third of them truncated."""
    rng = np.random.default_rng(0)
    for i in range(12):
        PIL.Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text(f"noise {i}")
    whole = (tmp_path / "02.png").read_bytes()
    (tmp_path / "02.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def config_of(folder, *assignments):
    data = dataclasses.replace(emoji.CONFIG.data, source=sources.Folder(str(folder)))
    config = dataclasses.replace(emoji.CONFIG, data=data, run_dir=str(folder / "run"))
    return configs.override(config, list(assignments))


def test_the_limit_of_corrupt_pictures_reaches_the_autoencoder(folder, monkeypatch):
    trained = []
    monkeypatch.setattr(autoencoders, "train", lambda config, held_out: trained.append(config.data) or "codec")
    assert emoji.prepare(config_of(folder)).data.codec_path == "codec"
    emoji.prepare(config_of(folder, "data.max_corrupt=0"))
    rows = next(trained[0].batches(0, 12)).x0
    assert rows.shape == (12, 1, 32, 32, 3)
    with pytest.raises(loader.TooManyCorruptRecords, match=r"1 corrupt records, but max_corrupt=0 .* record 02\.png"):
        next(trained[1].batches(0, 12))


@pytest.mark.slow
def test_a_truncated_picture_ends_neither_the_autoencoder_nor_its_export(folder):
    config = config_of(folder, "batch_size=8", "data.max_corrupt=1")
    tiny = functools.partial(image_vae.make_config, steps=2, batch_size=8, vae=TINY_VAE)
    prepared = autoencoders.with_codec(config, tiny)
    card = json.loads((folder / "run_vae" / "codec" / "card.json").read_text())
    assert card["held_out"] == 11
    assert len(prepared.data.with_text_encoder(config.model.text_encoder).latents) == 11
