import numpy as np
import pytest
from PIL import Image

from nova_jax import media


def video(frames=24):
    """Plain grey frames, each brighter than the one before."""
    return (10 * np.arange(frames, dtype=np.uint8))[:, None, None, None].repeat(6, 1).repeat(8, 2).repeat(3, 3)


@pytest.mark.parametrize("fps", [12, 24, 25, 30])
def test_a_gif_shows_each_frame_within_five_milliseconds_of_its_time(tmp_path, fps):
    media.save_gif(tmp_path / "a.gif", video(), fps=fps, upscale=2)
    starts, time = [], 0
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.size, image.info["loop"]) == (24, (16, 12), 0)
        for index in range(24):
            image.seek(index)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - 10 * index).max() <= 2
            starts.append(time)
            time += image.info["duration"]
    np.testing.assert_allclose(starts, 1000 * np.arange(24) / fps, atol=5)


def test_a_strip_shows_first_last_and_evenly_between():
    strip = media.contact_strip(video(), columns=4)
    assert strip.shape == (6, 4 * 8 + 3 * 2, 3)
    assert [int(strip[0, left, 0]) for left in (0, 10, 20, 30)] == [0, 80, 150, 230]
    assert (strip[:, 8:10] == 255).all()
    large = media.contact_strip(video(), columns=4, upscale=3)
    assert large.shape == (18, 4 * 24 + 3 * 2, 3)


def test_a_strip_of_few_frames_shows_all_of_them():
    assert media.contact_strip(video(3), columns=8).shape == (6, 3 * 8 + 2 * 2, 3)
    np.testing.assert_array_equal(media.contact_strip(video(1)), video(1)[0])
    np.testing.assert_array_equal(media.contact_strip(video(5), columns=1), video(1)[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda: media.contact_strip(video(0)),
        lambda: media.contact_strip(video(), columns=0),
        lambda: media.save_gif("a.gif", video(0)),
        lambda: media.save_gif("a.gif", video(), fps=0),
    ],
)
def test_nothing_to_show_is_refused(make):
    with pytest.raises(ValueError, match="give 1 or more"):
        make()
