"""The parts of the full-size scripts that need neither hours nor a TPU compiler."""

import importlib.util
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import reel_full_size, reel_plan
from nova_jax.models import tiling
from nova_jax.models import vae as vaes


@pytest.mark.parametrize(
    ("latent_frames", "chunk", "lengths"),
    [(37, 12, [1, 12, 12, 12]), (7, 4, [1, 4, 2]), (1, 3, [1]), (3, 1, [1, 1, 1])],
)
def test_chunks_cover_the_video(latent_frames, chunk, lengths):
    assert reel_full_size.chunk_lengths(latent_frames, chunk) == lengths
    plan = reel_full_size.Decode(chunk=chunk)
    chunks = list(reel_full_size.latent_chunks((latent_frames, 2, 3, 4), plan))
    assert [c.shape for c in chunks] == [(1, n, 2, 3, 4) for n in lengths]


@pytest.mark.long
def test_tiles_cost_more_by_what_they_share_and_more_frames_cost_the_same_each():
    vae = vaes.small_video(width=4, latent_channels=3)
    tiles = tiling.Tiles(size=(4, 4), overlap=2)
    plan = reel_full_size.Decode(tile=(4, 4), overlap=2)
    short, long = (reel_full_size.flops(vae, (n, 6, 10, 3), plan, tiles) for n in (2, 5))
    assert long["total"] - short["total"] == pytest.approx(3 * long["per_latent_frame"])
    assert 1 < long["total"] / long["untiled_total"] < 2 * 4 * 16 / 60


def test_every_parameter_of_the_decoder_is_drawn_in_the_dtype_asked_for():
    params = reel_full_size.random_params(vaes.small_video(width=4, latent_channels=3), jnp.bfloat16, 0)
    kernel = params["decoder"]["level_0"]["block_0"]["conv_2"]["kernel"]
    assert set(params) == {"decoder"}
    assert kernel.dtype == jnp.bfloat16
    assert np.abs(kernel).min() > 0


def test_memory_is_reported():
    assert reel_full_size.peaks()["peak_resident_bytes"] > 50 * 2**20


def test_sizes_that_have_no_latents_end_with_one_sentence():
    with pytest.raises(SystemExit, match=r"reel_full_size: a video has 1 \+ 4 n frames"):
        reel_full_size.main(["frames=24,"])
    with pytest.raises(SystemExit, match="Decode has no field 'fames'"):
        reel_full_size.main(["fames=25,"])


def test_collectives_are_counted_with_their_largest_result():
    program = """
      %ag = bf16[8,128]{1,0:T(8,128)} all-gather(%a), replica_groups={}
      %st = (f32[4], f32[32]) all-gather-start(%b), dimensions={0}
      %dn = f32[32] all-gather-done(%st)
      %cp = u32[] collective-permute(%c)
    """
    assert reel_plan.collectives(program) == {
        "all-gather": {"count": 2, "bytes": 8 * 128 * 2 + 32 * 4},
        "collective-permute": {"count": 1, "bytes": 4},
    }


def test_the_committed_plan_has_every_case_and_what_fits():
    record = json.loads(reel_plan.RESULT.read_text())
    assert len(record["cases"]) == len(reel_plan.CASES)
    for case, plan in zip(record["cases"], reel_plan.CASES, strict=True):
        assert (case["slice"], case["frames"]) == (plan.slice, plan.frames)
        assert case["fits"] == ("bytes_per_chip" in case)
    assert record["versions"]["libtpu"]


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_a_missing_compiler_says_what_to_install():
    with pytest.raises(SystemExit, match="the compiler for v5e:2x4 is missing: pip install"):
        reel_plan.main([])
