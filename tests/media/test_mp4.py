import errno
import json
import os
import resource
import signal
import subprocess
import sys
import weakref

import numpy as np
import pytest

from nova_jax import media
from tests import color_patches

av = pytest.importorskip("av")

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [128, 128, 128], [255, 255, 255]], np.uint8)


def video(frames=24, height=32, width=48):
    """Stripes of six colours, one after the other in a frame, brighter over time in the last one's place."""
    pixels = np.repeat(COLORS, width // 6, axis=0)[None, None].repeat(frames, 0).repeat(height, 1)
    pixels[:, :, -width // 6 :] = (10 * np.arange(frames))[:, None, None, None]
    return pixels


def frames_of(path):
    with av.open(os.fspath(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_frames_come_back_in_their_colours_and_at_their_times(tmp_path):
    path, pixels = tmp_path / "a.mp4", video()
    assert media.write_mp4(path, [pixels[:10], pixels[10:10], pixels[10:]]) == (path, 24, 1.0)
    again = frames_of(path)
    assert again.shape == pixels.shape
    centres = np.s_[:, 4:-4, 4::8]
    assert np.abs(again[centres].astype(int) - pixels[centres]).max() <= 4
    with av.open(os.fspath(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.average_rate) == ("h264", "yuv420p", 24)
        assert stream.codec_context.colorspace == 1, "BT.709, as players assume"
        times = [frame.time for frame in container.decode(stream)]
    np.testing.assert_allclose(times, np.arange(24) / 24, atol=1e-4)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat"), "players can start before they have all of it"


def test_colours_are_written_as_bt709_of_limited_range(tmp_path):
    media.write_mp4(tmp_path / "a.mp4", [color_patches.frame()[None]], crf=1)
    with av.open(os.fspath(tmp_path / "a.mp4")) as container:
        frame = next(container.decode(video=0))
        context = container.streams.video[0].codec_context
        assert (frame.format.name, frame.colorspace, frame.color_range) == ("yuv420p", 1, 1)
        assert (context.color_primaries, context.color_trc) == (1, 1)
        stored = frame.to_ndarray()  # as it is stored: luma above both chromas
    height, width = color_patches.frame().shape[:2]
    luma, chroma = stored[:height], stored[height:].reshape(2, height // 2, width // 2)
    expected = color_patches.to_yuv(color_patches.COLORS, "BT.709")
    assert np.abs(color_patches.centres(luma) - expected[..., 0]).max() <= 2
    for plane, channel in zip(chroma, (1, 2), strict=True):
        error = color_patches.centres(plane, color_patches.SIDE // 2) - expected[..., channel]
        assert np.abs(error).max() <= 2


def test_the_chunks_do_not_matter_and_the_same_video_is_the_same_file(tmp_path):
    pixels = video()
    media.write_mp4(tmp_path / "a.mp4", [pixels])
    media.write_mp4(tmp_path / "b.mp4", (frame[None] for frame in pixels))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_the_encoder_holds_few_frames(tmp_path):
    sizes = []

    def chunks():
        for frame in video(frames=30):
            sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))
            yield frame[None]

    media.write_mp4(tmp_path / "a.mp4", chunks())
    assert any(sizes[:16]), "the first packet is in the file"


def test_no_chunk_is_held_when_the_next_but_one_is_asked_for(tmp_path):
    alive = []

    def chunks():
        for _ in range(6):
            chunk = video(4)
            alive.append(weakref.ref(chunk))
            yield chunk
            del chunk
            assert sum(ref() is not None for ref in alive) <= 1

    assert media.write_mp4(tmp_path / "a.mp4", chunks()).frames == 24


def test_odd_sides_grow_by_their_last_row_and_column(tmp_path):
    pixels = video(2)[:, :31, :47]
    media.write_mp4(tmp_path / "a.mp4", [pixels])
    again = frames_of(tmp_path / "a.mp4").astype(int)
    assert again.shape == (2, 32, 48, 3)
    assert np.abs(again[:, 31] - again[:, 30]).max() <= 4
    assert np.abs(again[:, :, 47] - again[:, :, 46]).max() <= 4


@pytest.mark.parametrize("prompt", ["a fox runs", 'é猫 "quoted"\n', "x" * 4000, ""])
def test_metadata_comes_back(tmp_path, prompt):
    said = {"prompt": prompt, "seed": "2147483646", "request": json.dumps({"fps": 24})}
    media.write_mp4(tmp_path / "a.mp4", [video(1)], metadata=said)
    assert media.read_metadata(tmp_path / "a.mp4") == said
    with av.open(os.fspath(tmp_path / "a.mp4")) as container:
        assert container.metadata.get("title", "") == prompt, "players show it"
    media.write_mp4(tmp_path / "b.mp4", [video(1)])
    assert "seed" not in media.read_metadata(tmp_path / "b.mp4")


def test_joined_videos_are_their_frames_one_after_the_other(tmp_path):
    parts = [tmp_path / f"{i}.mp4" for i in range(3)]
    for i, path in enumerate(parts):
        media.write_mp4(path, [np.roll(video(25), 8 * i, axis=2)])
    joined = tmp_path / "all.mp4"
    assert media.join_mp4(parts, joined, {"prompt": "film"}) == (joined, 75, 3.125)
    np.testing.assert_array_equal(frames_of(joined), np.concatenate([frames_of(path) for path in parts]))
    with av.open(os.fspath(joined)) as container:
        np.testing.assert_allclose([f.time for f in container.decode(video=0)], np.arange(75) / 24, atol=1e-4)
    assert media.read_metadata(joined) == {"prompt": "film"}


def test_what_cannot_be_joined_leaves_nothing_behind(tmp_path):
    media.write_mp4(tmp_path / "a.mp4", [video(3)])
    media.write_mp4(tmp_path / "b.mp4", [video(3, width=60)])
    (tmp_path / "c.mp4").write_bytes(b"no video")
    for parts, error, message in (
        ([], ValueError, "no videos to join"),
        (["a.mp4", "b.mp4"], ValueError, r"b\.mp4 has .*60, 32"),
        (["a.mp4", "c.mp4"], OSError, r"cannot be read.*c\.mp4"),
        (["a.mp4", "d.mp4"], FileNotFoundError, r"no such file .*d\.mp4"),
    ):
        with pytest.raises(error, match=message):
            media.join_mp4([tmp_path / part for part in parts], tmp_path / "all.mp4")
    assert sorted(os.listdir(tmp_path)) == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([], "no frames"),
        ([video(0)], "no frames"),
        ([video(2).astype(np.float32)], r"float32 .*must be uint8 \(n, h, w, 3\)"),
        ([video(2)[..., :1]], r"must be uint8 \(n, h, w, 3\)"),
        ([video(1)[0]], r"must be uint8 \(n, h, w, 3\)"),
        ([video(2), video(2)[:, 2:]], r"uint8 \(2, 30, 48, 3\); it must be uint8 \(n, 32, 48, 3\) like the first"),
    ],
)
def test_what_is_no_video_is_refused_and_leaves_nothing_behind(tmp_path, chunks, message):
    with pytest.raises(ValueError, match=message):
        media.write_mp4(tmp_path / "a.mp4", iter(chunks))
    assert os.listdir(tmp_path) == []


def test_a_failure_of_the_frames_is_theirs_and_an_older_file_stays(tmp_path):
    path = tmp_path / "a.mp4"
    media.write_mp4(path, [video(1)])
    before = path.read_bytes()

    def failing():
        yield video(30)
        assert sorted(os.listdir(tmp_path)) == ["a.mp4", "a.mp4.partial"]
        raise FileNotFoundError("weights")

    with pytest.raises(FileNotFoundError, match=r"^weights$"):
        media.write_mp4(path, failing())
    assert os.listdir(tmp_path) == ["a.mp4"]
    assert path.read_bytes() == before


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_a_full_disk_is_one_sentence_and_leaves_nothing_behind(tmp_path):
    os.symlink("/dev/full", tmp_path / "a.mp4.partial")
    with pytest.raises(OSError, match=r"no space is left on the disk: free some, .*a\.mp4'$") as caught:
        media.write_mp4(tmp_path / "a.mp4", [video()])
    assert caught.value.errno == errno.ENOSPC
    assert os.listdir(tmp_path) == []


LIMITED = """
import numpy as np, os, resource, signal, sys
from nova_jax import media
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 48, 3), np.uint8)
whole = os.path.getsize(media.write_mp4("whole.mp4", [pixels]).path)
for limit in (0, 30, whole // 2, whole - 1000, whole - 1):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        media.write_mp4("a.mp4", [pixels])
    except OSError as error:
        failure = str(error)
    else:
        sys.exit(f"no error at {limit} of {whole} bytes")
    if os.listdir() != ["whole.mp4"]:
        sys.exit(f"{os.listdir()} at {limit} of {whole} bytes")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(failure)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ") or not hasattr(resource, "RLIMIT_FSIZE"), reason="needs file limits")
def test_no_failed_write_goes_unnoticed_up_to_the_last_byte(tmp_path):
    path = os.pathsep.join(p for p in sys.path if p) or os.getcwd()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([os.getcwd(), path])}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "cannot be read or written (File too large)" in done.stdout


def test_a_missing_folder_is_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no such file or folder: make it, .*no/a\.mp4'$"):
        media.write_mp4(tmp_path / "no" / "a.mp4", [video(1)])


def test_without_pyav_the_error_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"pip install 'nova-jax\[video\]'"):
        media.write_mp4(tmp_path / "a.mp4", [video(1)])
    assert os.listdir(tmp_path) == []


def test_a_pyav_that_gets_colours_wrong_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "__version__", "15.1.0")
    with pytest.raises(ImportError, match=r"needs av 17 or newer, and 15\.1\.0 is installed.*: pip install 'av>=17'"):
        media.write_mp4(tmp_path / "a.mp4", [video(1)])
    assert os.listdir(tmp_path) == []
