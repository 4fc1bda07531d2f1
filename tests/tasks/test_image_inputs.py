import io

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest

from nova_jax import tasks
from nova_jax.tasks import CANVAS, TINY, image_inputs
from tests.media import encoded
from tests.tasks import examples

PIXELS = examples.picture()
ALPHA = np.full((32, 40, 1), 255, np.uint8)


def refused(source, read=image_inputs.read_image, limits=TINY):
    return examples.problems_of(read, source, limits)


def test_bytes_paths_and_pil_images_are_read_alike(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(examples.file_of(PIXELS))
    for source in (path, str(path), path.read_bytes(), PIL.Image.open(path), PIL.Image.fromarray(PIXELS)):
        read = image_inputs.read_image(source, TINY)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, PIXELS)


def test_an_image_of_the_caller_stays_open(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(examples.file_of(PIXELS))
    with PIL.Image.open(path) as image:
        image_inputs.read_image(image, TINY)
        assert image.getpixel((0, 0)) == tuple(PIXELS[0, 0].tolist())


def test_jpeg_is_read_as_decoded():
    data = examples.file_of(PIXELS, "JPEG", quality=95)
    np.testing.assert_array_equal(image_inputs.read_image(data, TINY), np.asarray(PIL.Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP"])
def test_other_formats_are_refused(kind):
    assert [str(p) for p in refused(examples.file_of(PIXELS, kind))] == [
        "image is in neither format; it must be a PNG or JPEG."
    ]


def test_a_truncated_file_is_refused():
    for kind in ["PNG", "JPEG"]:
        for kept in [0.0, 0.1, 0.5, 0.9]:
            data = examples.file_of(PIXELS, kind)
            (problem,) = refused(data[: int(kept * len(data))])
            assert problem.allowed in ("a PNG or JPEG", "a whole PNG or JPEG")


def test_a_truncated_file_at_a_path_is_named(tmp_path):
    path = tmp_path / "half.png"
    path.write_bytes(examples.file_of(PIXELS)[:2000])
    (problem,) = refused(path)
    assert problem.field == str(path)
    assert problem.given.startswith("damaged")
    with pytest.raises(FileNotFoundError):
        image_inputs.read_image(tmp_path / "none.png")


def test_opaque_alpha_is_accepted_and_real_alpha_refused():
    opaque = np.concatenate([PIXELS, ALPHA], axis=-1)
    np.testing.assert_array_equal(image_inputs.read_image(examples.file_of(opaque), TINY), PIXELS)
    opaque[3, 4, 3] = 254
    (problem,) = refused(examples.file_of(opaque))
    assert (problem.given, problem.allowed) == ("transparent in 1 of its pixels", "opaque in every pixel")


def test_a_transparent_color_of_an_rgb_png_is_real_alpha():
    data = examples.file_of(PIXELS, transparency=tuple(PIXELS[0, 0].tolist()))
    assert [p.allowed for p in refused(data)] == ["opaque in every pixel"]
    unused = np.zeros_like(PIXELS)
    np.testing.assert_array_equal(
        image_inputs.read_image(examples.file_of(unused, transparency=(1, 2, 3)), TINY), unused
    )


@pytest.mark.parametrize("mode", ["L", "P", "1", "LA", "CMYK", "I;16"])
def test_pictures_of_other_modes_are_refused(mode):
    stream = io.BytesIO()
    PIL.Image.new(mode, (40, 32)).save(stream, "JPEG" if mode == "CMYK" else "PNG")
    assert "in one of the modes RGB, RGBA" in [p.allowed for p in refused(stream.getvalue())]


def test_sixteen_bits_per_channel_are_refused():
    assert [p.allowed for p in refused(examples.png_header(40, 32, bits=16))] == ["of 8 bits per channel"]


def test_an_animation_is_refused():
    frames = [PIL.Image.fromarray(examples.picture(i)) for i in range(2)]
    stream = io.BytesIO()
    frames[0].save(stream, "PNG", save_all=True, append_images=frames[1:])
    assert [p.allowed for p in refused(stream.getvalue())] == ["a still image"]


@pytest.mark.parametrize(
    ("width", "height", "limits"),
    [
        (31, 32, TINY),
        (257, 128, TINY),
        (129, 32, TINY),
        (2048, 2048, CANVAS),
        (10_000, 10_000, CANVAS),
        (60_000, 60_000, TINY),
    ],
)
def test_a_size_is_refused_before_anything_is_decoded(width, height, limits, monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", load)
    assert refused(examples.png_header(width, height), limits=limits)


def test_exif_orientation_is_applied():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    turned = image_inputs.read_image(examples.file_of(PIXELS, exif=exif), TINY)
    np.testing.assert_array_equal(turned, np.rot90(PIXELS, -1))


def test_a_picture_of_a_wide_space_is_read_in_srgb_and_a_mask_as_it_is():
    stored, profile = encoded.from_srgb(PIXELS, "adobe"), encoded.profile("adobe")
    read = image_inputs.read_image(examples.file_of(stored, icc_profile=profile), TINY)
    assert np.abs(read - encoded.to_srgb(stored, "adobe")).max() <= 1
    mask = np.repeat(examples.mask()[..., None], 3, axis=-1)
    np.testing.assert_array_equal(
        image_inputs.read_mask(examples.file_of(mask, icc_profile=encoded.gray_profile(1.0)), TINY), examples.mask()
    )


def test_the_first_picture_of_an_mpo_is_read():
    previews = [PIL.Image.fromarray(examples.picture(1))]
    data = examples.file_of(PIXELS, "MPO", save_all=True, append_images=previews, quality=95)
    np.testing.assert_array_equal(
        image_inputs.read_image(data, TINY), image_inputs.read_image(examples.file_of(PIXELS, "JPEG", quality=95), TINY)
    )


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA"])
def test_a_mask_may_be_stored_in_color_or_grey(mode):
    stream = io.BytesIO()
    PIL.Image.fromarray(examples.mask()).convert(mode).save(stream, "PNG")
    np.testing.assert_array_equal(image_inputs.read_mask(stream.getvalue(), TINY), examples.mask())


@pytest.mark.parametrize("value", [(128, 128, 128), (1, 1, 1), (254, 254, 254), (255, 0, 0), (0, 255, 255)])
def test_a_mask_pixel_that_is_neither_black_nor_white_is_named(value):
    pixels = np.repeat(examples.mask()[..., None], 3, axis=-1)
    pixels[5, 7] = value
    (problem,) = refused(examples.file_of(pixels), image_inputs.read_mask)
    assert problem.given == (
        f"neither black nor white in 1 of its pixels (the first, {list(value)}, at row 5 and column 7)"
    )


def test_a_jpeg_mask_is_accepted_only_as_far_as_it_stays_pure():
    blocks = np.kron(examples.mask()[:4, :5], np.ones((8, 8), np.uint8))  # JPEG codes blocks of 8 x 8
    np.testing.assert_array_equal(image_inputs.read_mask(examples.file_of(blocks, "JPEG", quality=100), TINY), blocks)
    (problem,) = refused(examples.file_of(examples.mask(), "JPEG", quality=50), image_inputs.read_mask)
    assert "JPEG mixes them" in problem.allowed


def test_the_earlier_name_still_reads():
    with pytest.warns(DeprecationWarning, match="read_image"):
        assert tasks.read_picture is tasks.read_image


def test_png_files_written_are_rgb():
    for pixels in (PIXELS, examples.mask()):
        image = PIL.Image.open(io.BytesIO(image_inputs.to_png(pixels)))
        assert (image.mode, image.size) == ("RGB", (40, 32))
