import contextlib
import fractions
import io
import json
import pickle
import resource
import sys

import numpy as np
import pytest

from data_pipelines import images, sources
from nova_jax import media
from tests import color_patches

av = pytest.importorskip("av")

STEP = 8  # levels from one frame to the next


def levels(number, height=32, width=48):
    """Plain frames of rising brightness."""
    return (
        (STEP * np.arange(number, dtype=np.uint8))[:, None, None, None].repeat(height, 1).repeat(width, 2).repeat(3, 3)
    )


def encode(pixels, *, fps=24, codec="libx264", form="mp4", times=None, with_sound=False, **stream_fields):
    """The bytes of a video; times in milliseconds are those of its frames."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = pixels.shape[1], pixels.shape[2], "yuv420p"
        if times is not None:
            stream.codec_context.time_base = fractions.Fraction(1, 1000)
        if "rotation" in stream_fields:
            stream.set_display_rotation(stream_fields["rotation"])
        if "aspect" in stream_fields:
            stream.codec_context.sample_aspect_ratio = stream_fields["aspect"]
        sound = container.add_stream("aac", rate=48000) if with_sound else None
        for index, picture in enumerate(pixels):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], fractions.Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound is not None:
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 48000), np.float32), format="fltp", layout="mono")
            samples.rate = 48000
            container.mux([*sound.encode(samples), *sound.encode(None)])
    return file.getvalue()


def shown(pixels):
    """Which frame of `levels` each frame is."""
    assert np.abs(pixels.astype(int) - pixels[:, :1, :1, :1]).max() <= 2
    return np.rint(pixels[:, 16, 24, 0] / STEP).astype(int).tolist()


def decoder(frames=25, **changes):
    return sources.VideoDecoder(**{"size": (32, 48), "frames": frames} | changes)


def reason(data, **changes):
    with pytest.raises(images.Undecodable) as caught:
        decoder(**changes)(data)
    return str(caught.value)


@pytest.mark.parametrize(
    ("codec", "form"), [("libx264", "mp4"), ("libx264", "mov"), ("libx264", "matroska"), ("libvpx-vp9", "webm")]
)
def test_the_frames_of_every_container_come_back(codec, form):
    pixels = decoder()(encode(levels(28), codec=codec, form=form))
    assert (pixels.shape, pixels.dtype) == ((25, 32, 48, 3), np.uint8)
    assert shown(pixels) == list(range(25))


@pytest.mark.parametrize("form", ["mp4", "matroska"])
@pytest.mark.parametrize("fps", [12, 16, 24, 25, 30, 48, 50, 60])
def test_a_frame_shows_what_is_seen_at_its_time(fps, form):
    frames = 9 if fps <= 24 else 5
    found = shown(decoder(frames)(encode(levels(16), fps=fps, form=form)))
    assert found == [k * fps // 24 for k in range(frames)]


def encode_colors(matrix, color_range, codec, form, *, names_them=True):
    """A video of coloured patches whose luma and chroma are those of the matrix and range, and which says so."""
    file, pixels = io.BytesIO(), color_patches.planes(matrix, color_range)
    tags = {"colorspace": color_patches.MATRIX[matrix], "color_range": color_range} if names_them else {}
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=24, options={"crf": "1", "b": "0"})
        stream.width, stream.height, stream.pix_fmt = *color_patches.frame().shape[1::-1], "yuv420p"
        for key, value in tags.items():
            setattr(stream.codec_context, key, value)
        for time in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, format="yuv420p")
            frame.pts = time
            for key, value in tags.items():
                setattr(frame, key, value)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def color_error(data):
    """The largest error of a patch's colour, in levels of 255."""
    found = decoder(1, size=color_patches.frame().shape[:2])(data)[0]
    return np.abs(color_patches.centres(found) - color_patches.COLORS).max()


@pytest.mark.parametrize(("codec", "form"), [("libx264", "mp4"), ("libx264", "matroska"), ("libvpx-vp9", "webm")])
@pytest.mark.parametrize("color_range", [color_patches.LIMITED, color_patches.FULL], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", color_patches.MATRIX)
def test_colours_are_those_of_the_matrix_and_range_that_the_file_names(matrix, color_range, codec, form):
    assert color_error(encode_colors(matrix, color_range, codec, form)) <= 3


def test_a_file_that_names_no_colours_is_read_as_bt601():
    def error(matrix):
        return color_error(encode_colors(matrix, color_patches.LIMITED, "libx264", "mp4", names_them=False))

    assert error("BT.601") <= 3
    assert error("BT.709") > 15


def test_a_pyav_that_gets_colours_wrong_is_refused(monkeypatch):
    monkeypatch.setattr(av, "__version__", "16.1.0")
    with pytest.raises(ImportError, match=r"reading videos needs av 17 or newer, and 16\.1\.0 .* pip install 'av>=17'"):
        decoder()(b"")


def test_a_target_of_another_rate_shows_what_is_seen_at_its_times():
    data = encode(levels(30), fps=24)
    assert shown(decoder(9, fps=8)(data)) == [3 * k for k in range(9)]
    assert shown(decoder(9, fps=48)(data)) == [k // 2 for k in range(9)]


def test_film_rate_counts_as_24_and_times_may_begin_late_and_vary():
    film = encode(levels(10), fps=fractions.Fraction(24000, 1001))
    assert shown(decoder(9)(film)) == list(range(9))
    times = [500, 541, 542, 700, 750, 800]  # from the first: 0, 41, 42, 200, 250, 300 ms
    assert shown(decoder(5)(encode(levels(6), times=times))) == [0, 2, 2, 2, 2]
    assert shown(decoder(9, fps=30)(encode(levels(6), times=times))) == [0, 0, 2, 2, 2, 2, 3, 3, 4]


def test_a_short_video_is_refused_with_what_would_do():
    assert (
        reason(encode(levels(24))) == "too short: 24 frames at 24 per second, fewer than frames=25; frames=21 would do"
    )
    assert shown(decoder(21)(encode(levels(24)))) == list(range(21))
    assert shown(decoder(25)(encode(levels(13), fps=12))) == [k // 2 for k in range(25)]
    assert "too short: 24" in reason(encode(levels(12), fps=12))


@pytest.mark.parametrize(("frames", "near"), [(24, "21 or 25"), (144, "141 or 145"), (0, "1 or 5")])
def test_frames_that_no_autoencoder_codes_are_refused_with_the_nearest(frames, near):
    with pytest.raises(ValueError, match=rf"frames={frames} must be 1 \+ 4k, .*: {near}$"):
        decoder(frames)
    with pytest.raises(ValueError, match="must be 1 or more"):
        decoder(size=(0, 4))


def test_frames_are_cut_to_the_largest_centred_box():
    pixels = levels(1, 32, 96)
    pixels[:, :, :24], pixels[:, :, 72:] = (255, 0, 0), (0, 0, 255)  # left and right of the centre
    found = decoder(1, size=(16, 24))(encode(pixels))
    assert found.shape == (1, 16, 24, 3)
    assert found[:, :, 2:-2].max() < 40


@pytest.mark.parametrize(("rotation", "corner"), [(0, (4, 4)), (90, (-4, 4)), (180, (-4, -4)), (-90, (4, -4))])
def test_frames_stand_upright(rotation, corner):
    pixels = levels(1)
    pixels[:, :16, :24] = (255, 0, 0)  # top left
    size = (48, 32) if rotation % 180 else (32, 48)
    found = decoder(1, size=size)(encode(pixels, rotation=rotation))[0]
    assert found[corner][0] > 200
    assert (found[..., 0] > 128).mean() == pytest.approx(0.25, abs=0.02)


def test_pixels_become_square():
    pixels = levels(1)
    pixels[:, :, :24] = (255, 0, 0)
    found = decoder(1, size=(32, 96))(encode(pixels, aspect=fractions.Fraction(2, 1)))[0]
    assert ((found[..., 0] > 128).sum(axis=1) == 48).all()


def test_sound_is_left_out_and_pictures_must_be_there():
    assert shown(decoder(5)(encode(levels(8), with_sound=True))) == list(range(5))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=48000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        samples.rate = 48000
        container.mux([*sound.encode(samples), *sound.encode(None)])
    assert "no images in it" in reason(file.getvalue())


def test_limits_are_checked():
    data = encode(levels(27))
    assert reason(data, max_pixels=48 * 32 - 1) == "frames of 48 x 32 pixels; at most 1,535 are allowed"
    assert reason(data, max_seconds=1) == "1.1 s long, more than max_seconds=1"
    assert reason(data, max_bytes=100) == f"{len(data):,} bytes, more than max_bytes=100"
    assert shown(decoder(max_pixels=48 * 32, max_seconds=2, max_bytes=len(data))(data)) == list(range(25))
    fast = encode(levels(25).repeat(8, axis=0), fps=240)
    assert reason(fast, max_fps=48, frames=17) == "more than max_fps=48 frames per second"
    assert shown(decoder(17, max_fps=240)(fast))[-1] == 20


@pytest.mark.parametrize(("max_pixels", "said"), [(4_000_000, "frames of 3000 x 2000 pixels"), (500_000, "max_pixels")])
def test_a_small_file_of_huge_frames_costs_next_to_nothing(max_pixels, said):
    data = encode(np.broadcast_to(np.uint8(0), (1, 2000, 3000, 3)), codec="mpeg4")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert len(data) < 100_000
    assert said in reason(data, max_pixels=max_pixels)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 2 * 2000 * 3000 * 3


@pytest.mark.parametrize(
    "data", [b"", b"#EXTM3U\n#EXTINF:1,\n/etc/hostname\n", b"GIF89a", b"ffconcat version 1.0\nfile x"]
)
def test_what_is_no_video_is_never_opened(data, monkeypatch):
    monkeypatch.setattr(av, "open", lambda *a, **k: pytest.fail("opened"))
    assert reason(data) == "neither MP4 (MOV) nor Matroska (WebM)"


@pytest.mark.parametrize("form", ["mp4", "matroska"])
def test_a_damaged_or_cut_video_is_refused_or_read_and_never_hangs(form):
    data, rng = encode(levels(27), form=form), np.random.default_rng(0)
    for end in (8, 60, len(data) // 2, len(data) - 200):
        assert reason(data[:end]).startswith(("damaged", "too short", "no images"))
    for _ in range(40):
        broken = np.frombuffer(data, np.uint8).copy()
        broken[rng.integers(8, len(data), 20)] = rng.integers(0, 256, 20)
        with contextlib.suppress(images.Undecodable):
            assert decoder()(broken.tobytes()).shape == (25, 32, 48, 3)


def test_colours_that_we_wrote_are_read_as_they_were(tmp_path):
    media.write_mp4(tmp_path / "a.mp4", [color_patches.frame()[None]], crf=1)
    assert color_error((tmp_path / "a.mp4").read_bytes()) <= 3


def test_what_pads_a_video_for_the_eye_is_read_as_written(tmp_path):
    media.write_mp4(tmp_path / "a.mp4", [levels(25)])
    assert shown(decoder()((tmp_path / "a.mp4").read_bytes())) == list(range(25))


def test_without_pyav_the_error_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"reading videos needs av: pip install 'nova-jax\[video\]'"):
        decoder()(b"")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, form, number in (("a.mp4", "mp4", 26), ("sub/b.webm", "matroska", 30), ("c.MKV", "matroska", 24)):
        (tmp_path / name).write_bytes(encode(levels(number), form=form))
        (tmp_path / name).with_suffix(".txt").write_text(f"a clip of {number} frames\n")
    (tmp_path / "picture.png").write_bytes(b"not asked for")
    return tmp_path


def test_a_folder_of_videos_has_their_frames_and_captions(folder):
    source = sources.Folder(folder, decoder=decoder())
    assert len(source) == 3
    first, last = source[0], source[2]
    assert (first["key"], first["caption"], shown(first["pixels"])) == ("a.mp4", "a clip of 26 frames", [*range(25)])
    assert (last["key"], last["caption"]) == ("sub/b.webm", "a clip of 30 frames")
    with pytest.raises(sources.CorruptRecord, match=r"record c\.MKV: too short: 24 frames"):
        source[1]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[0]["pixels"], first["pixels"])
    assert again.fingerprint() == source.fingerprint()
    assert sources.Folder(folder, decoder=decoder(21)).fingerprint() != source.fingerprint()


def test_a_metadata_file_names_videos(folder):
    rows = [{"file_name": "sub/b.webm", "caption": "b"}, {"file_name": "a.mp4", "caption": "a"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = sources.Folder(folder, decoder=decoder())
    assert [(sample["key"], sample["caption"]) for sample in source] == [("sub/b.webm", "b"), ("a.mp4", "a")]


def test_a_folder_without_videos_or_captions_is_refused(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    (empty / "a.png").write_bytes(b"")
    with pytest.raises(sources.DatasetError, match=r"holds no videos \(\.mp4, \.m4v, \.mov, \.webm, \.mkv\)"):
        len(sources.Folder(empty, decoder=decoder()))
    for path in folder.rglob("*.txt"):
        path.unlink()
    with pytest.raises(sources.DatasetError, match=r"no video in .* put NAME\.txt beside NAME\.mp4"):
        len(sources.Folder(folder, decoder=decoder()))


def test_a_file_that_is_too_large_is_not_read(folder, monkeypatch):
    source = sources.Folder(folder, decoder=decoder(max_bytes=10))
    with pytest.raises(sources.CorruptRecord, match=r"the video has [\d,]+ bytes, more than max_bytes=10"):
        source[0]


def test_tars_hold_videos(make_tar):
    files = {"0.mp4": encode(levels(26)), "0.txt": b"one", "1.json": b"{}", "2.webm": b"no", "2.txt": b"two"}
    path = make_tar("a.tar", files | {"3.png": b"other", "3.txt": b"three"})
    source = sources.WebDataset(path, decoder=decoder())
    assert len(source) == 2
    assert (source[0]["key"], source[0]["caption"], shown(source[0]["pixels"])) == ("0", "one", [*range(25)])
    with pytest.raises(sources.CorruptRecord, match="record 2: neither MP4"):
        source[1]
    with pytest.raises(sources.DatasetError, match=r"no member has a video's extension \(\.mp4"):
        len(sources.WebDataset(make_tar("b.tar", {"3.png": b"other", "3.txt": b"three"}), decoder=decoder()))


def test_an_index_of_pictures_is_not_taken_for_one_of_videos(make_tar, tmp_path, png, pictures):
    path = make_tar("a.tar", {"0.mp4": encode(levels(26)), "0.txt": b"x", "1.png": png(pictures[0]), "1.txt": b"y"})
    for _ in range(2):
        assert [s["key"] for s in sources.WebDataset(path, index_dir=str(tmp_path))] == ["1"]
        assert [s["key"] for s in sources.WebDataset(path, index_dir=str(tmp_path), decoder=decoder())] == ["0"]
