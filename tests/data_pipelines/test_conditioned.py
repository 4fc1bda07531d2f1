"""Latents of editing tasks: what shapes the stored arrays belongs to their identity."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines import conditioned
from data_pipelines.scenes.editing.source import CanvasScenes
from data_pipelines.scenes.exams import editing_exam, video_exam
from data_pipelines.scenes.video.source import Reels
from nova_jax import weights
from nova_jax.models import text
from tests.tiny_run import TINY_VAE


@pytest.fixture(scope="module")
def codec_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae")
    weights.save(TINY_VAE, jax.jit(TINY_VAE.init)(jax.random.key(0)), path)
    return str(path)


def test_another_number_of_reference_slots_has_latents_of_its_own(codec_path, tmp_path):
    one = conditioned.ConditionedLatents(
        sources=(CanvasScenes(task="vary", length=6),),
        num_frames=1,
        codec_path=codec_path,
        cache_path=str(tmp_path),
        text_encoder=text.ByteTextEncoder(length=64),
    )
    five = dataclasses.replace(one, num_frames=5)
    for data in (one, five, one):
        cond = next(data.batches(0, 6)).cond
        assert cond.frames.shape[1] == data.num_frames
    shown = [element["num_references"] for element in (one.sources[0][i] for i in range(6))]
    clean = next(five.batches(0, 6)).cond.frame_times < 1
    assert clean.sum() == sum(shown) > 6
    assert len(list(tmp_path.iterdir())) == 2


def test_the_exam_is_that_of_the_world_in_captions_cut_as_in_training(codec_path):
    encoder = text.ByteTextEncoder(length=16)
    scenes, clips = CanvasScenes(), Reels()
    for source, kind in ((scenes, editing_exam.Exam), (clips, video_exam.Exam)):
        data = conditioned.ConditionedLatents(sources=(source,), codec_path=codec_path, text_encoder=encoder)
        exam = data.exam(3)
        assert isinstance(exam, kind)
        assert (exam.world, exam.per_task, exam.cut("x" * 40)) == (source.world, 3, encoder.cut("x" * 40))


def test_what_does_not_shape_the_stored_arrays_shares_them(codec_path, tmp_path):
    data = conditioned.ConditionedLatents(
        sources=(CanvasScenes(task="generate", length=4),),
        codec_path=codec_path,
        cache_path=str(tmp_path),
        text_encoder=text.ByteTextEncoder(length=64),
    )
    for fields in ({}, {"is_aligned": True}, {"num_frames": 2}, {"seed": 1, "threads": 1}):
        latents = dataclasses.replace(data, **fields).latents
        assert np.isfinite(latents[0]["latents"]).all()
    assert len(list(tmp_path.iterdir())) == 1
