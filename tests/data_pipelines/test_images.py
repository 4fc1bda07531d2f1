import contextlib
import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageFile
import pytest

from data_pipelines import images
from tests.media import encoded


def test_compositing_is_exact_to_the_nearest_integer_for_every_value_and_alpha():
    value, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([value, value, value, alpha], axis=-1).astype(np.uint8)
    for background in ((255, 255, 255), (0, 17, 200)):
        mixed = images.composite(PIL.Image.fromarray(rgba), background)
        exact = (value[..., None] * alpha[..., None] + np.array(background) * (255 - alpha[..., None])) / 255
        np.testing.assert_array_equal(np.asarray(mixed), np.rint(exact))


def test_transparent_pixels_show_the_background(png):
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [255, 0, 0, 51]]], np.uint8)
    assert images.Decoder()(png(rgba))[0, 0].tolist() == [[255, 255, 255], [10, 20, 30], [255, 204, 204]]
    assert images.Decoder(background=(0, 0, 100))(png(rgba))[0, 0].tolist() == [[0, 0, 100], [10, 20, 30], [51, 0, 80]]


def test_without_a_background_pictures_keep_their_alpha_and_opaque_ones_get_it(png, jpeg, pictures):
    rgba = np.array([[[10, 20, 30, 0], [10, 20, 30, 255], [255, 0, 0, 51]]], np.uint8)
    np.testing.assert_array_equal(images.WITH_ALPHA(png(rgba))[0], rgba)
    opaque = images.WITH_ALPHA(png(pictures[0]))[0]
    np.testing.assert_array_equal(opaque[..., :3], pictures[0])
    assert (opaque[..., 3] == 255).all()
    assert images.WITH_ALPHA(png(pictures[0][..., 0].astype(np.uint16) * 256))[0, ..., 3].min() == 255
    assert images.WITH_ALPHA(jpeg(pictures[0])).shape == (1, 8, 8, 4)


def test_transparent_pixels_do_not_bleed_into_a_smaller_picture(png):
    rgba = np.zeros((8, 8, 4), np.uint8)
    rgba[:, :5] = (200, 0, 0, 255)
    rgba[:, 5:] = (0, 255, 0, 0)  # a colour that nobody sees
    small = images.Decoder(size=(4, 4), background=None)(png(rgba))[0]
    assert (small[..., 3] < 255).any()
    assert not small[small[..., 3] > 0][:, 1].any()


def test_grey_palette_and_sixteen_bit_pictures_become_rgb(png):
    grey = np.array([[0, 100], [200, 255]], np.uint8)
    stream = io.BytesIO()
    palette = PIL.Image.fromarray(grey).convert("P")
    palette.save(stream, "PNG", transparency=bytes([255 if i else 0 for i in range(256)]))
    assert images.Decoder()(stream.getvalue())[0, ..., 0].tolist() == [[255, 100], [200, 255]]
    assert images.Decoder()(png(grey))[0].tolist() == np.repeat(grey[..., None], 3, -1).tolist()
    assert images.Decoder()(png(grey.astype(np.uint16) * 256 + 7))[0, ..., 1].tolist() == grey.tolist()


def claim_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("side", [5001, 10_000, 60_000])  # below PIL's warning, above it, above its error
def test_a_picture_that_claims_too_many_pixels_is_refused_before_decoding(side, monkeypatch):
    def load(self):
        raise AssertionError("decoded")

    monkeypatch.setattr(PIL.ImageFile.ImageFile, "load", load)
    with pytest.raises(images.Undecodable, match="25000000"):
        images.Decoder()(claim_size(side, side))


def test_of_a_jpeg_decoded_at_a_fraction_of_its_size_that_many_pixels_are_counted(png, jpeg):
    picture = np.full((128, 96, 3), 200, np.uint8)
    small = images.Decoder(size=(8, 8), max_pixels=24 * 32)
    assert np.abs(small(jpeg(picture)).astype(int) - 200).max() <= 1
    for decoder, data in ((small, png(picture)), (images.Decoder(max_pixels=24 * 32), jpeg(picture))):
        with pytest.raises(images.Undecodable, match=r"96 x 128 pixels; at most 768 are allowed: shrink it or raise"):
            decoder(data)


def test_only_still_png_jpeg_and_webp_are_accepted(pictures, png):
    image = PIL.Image.fromarray(pictures[0])
    for kind in ("GIF", "BMP", "TIFF", "PPM"):
        stream = io.BytesIO()
        image.save(stream, kind)
        with pytest.raises(images.Undecodable):
            images.Decoder()(stream.getvalue())
    stream = io.BytesIO()
    image.save(stream, "WEBP", save_all=True, append_images=[PIL.Image.fromarray(pictures[1])], lossless=True)
    with pytest.raises(images.Undecodable, match="animation"):
        images.Decoder()(stream.getvalue())
    stream = io.BytesIO()
    image.save(stream, "WEBP", lossless=True)
    np.testing.assert_array_equal(images.Decoder()(stream.getvalue())[0], pictures[0])


def test_what_is_no_picture_is_said():
    with pytest.raises(images.Undecodable, match="none of PNG, JPEG, WEBP"):
        images.ON_WHITE(b"no image")
    with pytest.raises(images.Undecodable, match="git lfs pull"):
        images.ON_WHITE(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


def test_damaged_files_raise_the_one_error_of_the_decoder(png, jpeg):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    rng = np.random.default_rng(1)
    for data in (png(pixels), jpeg(pixels)):
        for cut in (0, 1, 10, 60, len(data) // 2, len(data) * 9 // 10):
            with pytest.raises(images.Undecodable):
                images.Decoder()(data[:cut])
        for _ in range(60):
            broken = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                broken[place] = rng.integers(256)
            with contextlib.suppress(images.Undecodable):
                images.Decoder()(bytes(broken))


def test_exif_rotation_is_applied(jpeg):
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to show
    upright = images.Decoder()(jpeg(pixels, exif=exif))[0]
    assert upright.shape == (32, 16, 3)
    assert upright[2].mean() > 250
    assert upright[-3].mean() < 5


def test_pictures_of_a_wide_space_are_laid_over_the_background_in_srgb(png):
    stored = np.append(encoded.from_srgb(np.array([[[200, 40, 90]]], np.uint8), "p3")[0, 0], 255)
    rgba = np.array([[stored, [0, 0, 0, 0]]], np.uint8)
    decoded = images.Decoder(background=(10, 200, 30))(png(rgba, icc_profile=encoded.profile("p3")))[0, 0]
    assert np.abs(decoded[0].astype(int) - (200, 40, 90)).max() <= 2
    assert decoded[1].tolist() == [10, 200, 30]


def test_an_mpo_of_a_phone_is_one_picture_and_shrinks_while_decoding(pictures):
    large = PIL.Image.fromarray(pictures[0]).resize((256, 256), PIL.Image.Resampling.BICUBIC)
    files = []
    for kind, options in (("JPEG", {}), ("MPO", {"save_all": True, "append_images": [large.resize((32, 32))]})):
        stream = io.BytesIO()
        large.save(stream, kind, quality=95, **options)
        files.append(stream.getvalue())
    for decoder in (images.ON_WHITE, images.Decoder(size=(32, 32)), images.WITH_ALPHA):
        np.testing.assert_array_equal(decoder(files[0]), decoder(files[1]))


def test_sixteen_bit_gray_keeps_its_values_beside_a_transparent_level():
    levels = np.array([0, 77 * 256, 65535])[None, :, None]
    data = encoded.png(levels, 16, encoded.GRAY, {b"tRNS": struct.pack(">H", 65535)})
    assert images.Decoder(background=(1, 2, 3))(data)[0, 0].tolist() == [[0] * 3, [77] * 3, [1, 2, 3]]


def test_fit_keeps_the_centre_of_a_wide_picture_and_constant_colours():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (9, 90, 200)
    centre = np.asarray(images.fit(PIL.Image.fromarray(wide[:, 22:38]), (10, 8)))
    assert centre.shape == (10, 8, 3)
    assert (centre == (9, 90, 200)).all()
    fitted = np.asarray(images.fit(PIL.Image.fromarray(wide), (20, 20)))
    np.testing.assert_array_equal(fitted, wide[:, 20:40])


def test_fit_halves_a_smooth_picture_to_its_samples():
    ramp = np.linspace(0, 250, 256)
    image = np.broadcast_to(ramp[None, :, None], (256, 256, 3)).round().astype(np.uint8)
    half = np.asarray(images.fit(PIL.Image.fromarray(image), (128, 128))).astype(float)
    expected = (ramp[0::2] + ramp[1::2]) / 2
    np.testing.assert_allclose(half[:, 4:-4, 0], np.broadcast_to(expected, (128, 128))[:, 4:-4], atol=1)


def test_fitting_while_decoding_agrees_with_fitting_afterwards(png, jpeg):
    y, x = np.mgrid[:512, :640]
    pixels = np.stack([x % 256, y % 256, (x + y) // 5], axis=-1).astype(np.uint8)
    pixels = np.asarray(PIL.Image.fromarray(pixels).resize((320, 256)).resize((640, 512)))
    for data, tolerance in ((png(pixels), 0), (jpeg(pixels), 1)):
        after = np.asarray(images.fit(PIL.Image.fromarray(images.Decoder()(data)[0]), (64, 64)))
        while_decoding = images.Decoder(size=(64, 64))(data)[0]
        assert np.abs(after.astype(int) - while_decoding.astype(int)).mean() <= tolerance


def test_transform_maps_the_range_of_bytes_onto_minus_one_to_one():
    pixels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, -1)
    floats = images.Transform()({"pixels": pixels, "caption": "a"}, np.random.default_rng(0))
    assert floats["caption"] == "a"
    assert floats["pixels"].dtype == np.float32
    assert floats["pixels"].min() == -1
    assert floats["pixels"].max() == 1
    np.testing.assert_allclose(floats["pixels"], pixels / 127.5 - 1, atol=1e-6)


def test_flip_mirrors_all_frames_of_half_of_the_samples():
    clip = np.random.default_rng(0).integers(0, 256, (3, 4, 6, 3), np.uint8)
    plain = images.to_float(clip)
    flipped = 0
    for seed in range(400):
        out = images.Transform(flip=True)({"pixels": clip}, np.random.default_rng(seed))["pixels"]
        is_flipped = not np.array_equal(out, plain)
        np.testing.assert_array_equal(out, plain[:, :, ::-1] if is_flipped else plain)
        flipped += is_flipped
    assert abs(flipped - 200) < 4 * 10  # four standard deviations of a fair coin


def test_transform_fits_every_frame():
    clip = np.random.default_rng(0).integers(0, 256, (3, 12, 20, 3), np.uint8)
    out = images.Transform(size=(6, 6))({"pixels": clip}, np.random.default_rng(0))["pixels"]
    assert out.shape == (3, 6, 6, 3)
    for frame, expected in zip(out, clip, strict=True):
        one = images.Transform(size=(6, 6))({"pixels": expected[None]}, np.random.default_rng(0))["pixels"]
        np.testing.assert_array_equal(frame, one[0])
