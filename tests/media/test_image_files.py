import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest

from nova_jax.media import image_files
from tests.media import encoded

FORMATS = ("PNG", "JPEG", "WEBP")
INSIDE = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)  # colors that every space has


def read(data: bytes) -> PIL.Image.Image:
    with image_files.opened(data, FORMATS) as image:
        return image_files.to_srgb(image_files.upright(image))


def file_of(pixels: np.ndarray, kind: str = "PNG", mode: str | None = None, **options) -> bytes:
    stream = io.BytesIO()
    image = PIL.Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def difference(image: PIL.Image.Image, expected: np.ndarray) -> int:
    return int(np.abs(np.asarray(image.convert("RGB")).astype(int) - expected).max())


@pytest.mark.parametrize("space", ["p3", "adobe"])
def test_a_picture_of_a_wide_space_is_converted(space):
    stored, profile = encoded.from_srgb(INSIDE, space), encoded.profile(space)
    assert difference(read(file_of(stored)), INSIDE) > 20, "without its profile"
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("JPEG", {"quality": 95})):
        values = np.asarray(read(file_of(stored, kind, **options)))
        converted = read(file_of(stored, kind, icc_profile=profile, **options))
        assert difference(converted, encoded.to_srgb(values, space)) <= 1


def test_colors_of_a_palette_and_beside_alpha_are_converted_and_alpha_is_not():
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    stored, profile = encoded.from_srgb(INSIDE, "p3"), encoded.profile("p3")
    converted = read(file_of(np.concatenate([stored, alpha], axis=-1), icc_profile=profile))
    assert difference(converted, encoded.to_srgb(stored, "p3")) <= 1
    np.testing.assert_array_equal(np.asarray(converted)[..., 3:], alpha)
    values = np.asarray(read(file_of(stored, mode="P")))
    assert difference(read(file_of(stored, mode="P", icc_profile=profile)), encoded.to_srgb(values, "p3")) <= 1


def test_a_profile_that_is_srgb_changes_no_pixel():
    for profile in (
        encoded.profile("srgb"),
        PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes(),
    ):
        assert difference(read(file_of(INSIDE, icc_profile=profile)), INSIDE) == 0


def test_gray_and_ink_have_profiles_of_their_own():
    linear = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.rint(255 * encoded.from_linear(linear / 255, "srgb"))[..., None]
    for bits, scale in ((8, 1), (16, 257)):
        chunks = {b"iCCP": b"x\0\0" + zlib.compress(encoded.gray_profile(1.0))}
        data = encoded.png(linear[..., None].astype(int) * scale, bits, encoded.GRAY, chunks)
        assert difference(read(data), expected) <= 1
    inks = file_of(INSIDE, "JPEG", "CMYK", icc_profile=encoded.ink_profile(128))
    assert np.ptp(np.asarray(read(inks))) <= 1
    assert abs(np.asarray(read(inks)).mean() - 119) < 2  # L* = 50.2


def test_a_broken_or_unfitting_profile_is_left_out_and_said(caplog):
    whole = encoded.profile("adobe")
    for profile in (b"no profile", whole[:200], bytes(image_files.MAX_PROFILE_BYTES + 1), encoded.gray_profile(1.0)):
        image_files._transform_from.cache_clear()
        caplog.clear()
        image = PIL.Image.fromarray(INSIDE)
        image.info["icc_profile"] = profile
        assert difference(image_files.to_srgb(image), INSIDE) == 0
        assert "read as sRGB" in caplog.text


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_transparent_gray_level_of_a_png_is_transparent_at_every_depth(bits):
    top = 2**bits - 1
    levels = sorted({0, 1, top // 2, top - 1, top})
    for key in levels:
        data = encoded.png(np.array(levels)[None, :, None], bits, encoded.GRAY, {b"tRNS": struct.pack(">H", key)})
        rgba = np.asarray(read(data))[0]
        expected = [level * 255 // top if bits < 16 else level >> 8 for level in levels]
        assert rgba[:, 0].tolist() == expected
        assert rgba[:, 3].tolist() == [0 if level == key else 255 for level in levels]


@pytest.mark.parametrize("bits", [8, 16])
def test_a_transparent_color_of_a_png_is_transparent_at_every_depth(bits):
    top = 2**bits - 1
    colors = [(0, 0, 0), (top, top, top), (top, 0, top // 2)]
    for key in colors:
        chunks = {b"tRNS": struct.pack(">HHH", *key)}
        rgba = np.asarray(read(encoded.png(np.array([colors]), bits, encoded.RGB, chunks)))[0]
        assert rgba[:, 3].tolist() == [0 if color == key else 255 for color in colors]


def test_every_kind_of_png_is_read_at_every_depth():
    for kind, channels, mode in (
        (encoded.GRAY, 1, "RGB"),
        (encoded.RGB, 3, "RGB"),
        (encoded.GRAY_ALPHA, 2, "RGBA"),
        (encoded.RGB_ALPHA, 4, "RGBA"),
    ):
        for bits in (8, 16):
            values = np.random.default_rng(bits).integers(0, 2**bits, (5, 7, channels))
            image = read(encoded.png(values, bits, kind))
            assert image.mode == mode
            high = values >> (bits - 8)
            gray = np.repeat(high[..., :1], 3, axis=-1)
            colors = gray if channels < 3 else high[..., :3]
            expected = colors if channels % 2 else np.concatenate([colors, high[..., -1:]], axis=-1)
            np.testing.assert_array_equal(np.asarray(image), expected)
    for bits in (1, 2, 4, 8):
        indices = np.arange(2)[None, :, None]
        chunks = {b"PLTE": bytes([1, 2, 3, 4, 5, 6]), b"tRNS": bytes([9])}
        image = read(encoded.png(indices, bits, encoded.PALETTE, chunks))
        assert np.asarray(image).tolist() == [[[1, 2, 3, 9], [4, 5, 6, 255]]]


def test_floating_point_is_refused():
    with pytest.raises(image_files.UnreadableImage, match="range is not known"):
        image_files.upright(PIL.Image.new("F", (2, 2)))


def test_the_first_picture_of_an_mpo_is_read_upright_and_no_animation():
    exif = PIL.Image.Exif()
    exif[image_files.ORIENTATION] = 6
    preview = [PIL.Image.new("RGB", (4, 4))]
    wide = np.asarray(PIL.Image.fromarray(INSIDE).resize((32, 16)))
    data = file_of(wide, "MPO", save_all=True, append_images=preview, exif=exif, quality=95)
    with image_files.opened(data, FORMATS) as image:
        assert (image.format, image.n_frames) == ("MPO", 2)
        assert not image_files.is_animated(image)
    turned = read(data)
    np.testing.assert_array_equal(np.asarray(turned), np.asarray(read(file_of(wide, "JPEG", exif=exif, quality=95))))
    np.testing.assert_array_equal(np.asarray(turned), np.rot90(read(file_of(wide, "JPEG", quality=95)), -1))


def test_an_image_of_the_caller_is_left_as_it_was():
    image = PIL.Image.fromarray(INSIDE)
    image.info["icc_profile"] = encoded.profile("p3")
    exif = image.getexif()
    exif[image_files.ORIENTATION] = 3
    assert np.asarray(image_files.to_srgb(image_files.upright(image))).shape == INSIDE.shape
    assert (image.mode, image.getexif()[image_files.ORIENTATION]) == ("RGB", 3)
    np.testing.assert_array_equal(np.asarray(image), INSIDE)
