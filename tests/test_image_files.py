import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.image_headers import depth_in_file
from mperceiver_jax.image_encoding import encode_png
from mperceiver_jax.image_files import (
    LoadedImage,
    crop_to,
    pad_to,
    pixels_of_pillow,
    quantise,
    read_image,
    write_image,
)


def levels(channels, dtype=np.uint8, shape=(6, 5), seed=0):
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, (*shape, channels), dtype, endpoint=True)


def filtered_png(pixels, clear=None):
    """A PNG of 16-bit pixels in which row i has filter i mod 5, as other programs write them.

    `clear` is the colour that a tRNS chunk calls transparent.
    """
    height, width, channels = pixels.shape
    rows = pixels.astype(">u2").view(np.uint8).reshape(height, -1).astype(int)
    distance, above, out = 2 * channels, np.zeros(rows.shape[1], int), b""
    for i, row in enumerate(rows):
        left = np.concatenate([np.zeros(distance, int), row[:-distance]])
        corner = np.concatenate([np.zeros(distance, int), above[:-distance]])
        paeth = [
            min((a, b, c), key=lambda near, p=a + b - c: abs(p - near))
            for a, b, c in zip(left, above, corner, strict=True)
        ]
        guess = (0 * row, left, above, (left + above) // 2, np.array(paeth))[i % 5]
        out += bytes([i % 5]) + ((row - guess) % 256).astype(np.uint8).tobytes()
        above = row

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(out)), chunk(b"IEND", b"")]
    if clear is not None:
        parts.insert(1, chunk(b"tRNS", np.asarray(clear, ">u2").tobytes()))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_files_come_back_bit_for_bit(tmp_path, channels, dtype):
    before = levels(channels, dtype)
    source, target = tmp_path / "in.png", tmp_path / "deep" / "out.png"
    source.write_bytes(encode_png(before, icc=b"a profile"))
    image = read_image(source)
    assert image.pixels.shape == (6, 5, 3) and image.pixels.dtype == np.float32
    assert (image.bits, image.grey, image.icc) == (8 * dtype(0).itemsize, channels < 3, b"a profile")
    assert (image.alpha is not None) == (channels in (2, 4))
    write_image(target, image)
    assert target.read_bytes() == source.read_bytes()
    assert [path.name for path in target.parent.iterdir()] == ["out.png"]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_of_every_png_filter_are_read_whole(tmp_path, channels):
    before = levels(channels, np.uint16, (7, 6))
    (tmp_path / "x.png").write_bytes(filtered_png(before))
    image = read_image(tmp_path / "x.png")
    colours = before[..., : 1 if channels < 3 else 3]
    np.testing.assert_array_equal(quantise(image.pixels, 16), np.broadcast_to(colours, (7, 6, 3)))
    if channels in (2, 4):
        np.testing.assert_array_equal(quantise(image.alpha, 16), before[..., -1])


@pytest.mark.parametrize("channels", [1, 3])
def test_the_transparent_colour_of_16_bit_files_becomes_alpha(tmp_path, channels):
    before = levels(channels, np.uint16)
    (tmp_path / "x.png").write_bytes(filtered_png(before, clear=before[2, 3]))
    expected = np.ones((6, 5))
    expected[2, 3] = 0
    np.testing.assert_array_equal(read_image(tmp_path / "x.png").alpha, expected)


def test_16_bit_files_written_here_are_read_by_others(tmp_path):
    pixels = levels(1, np.uint16)
    path = tmp_path / "x.png"
    path.write_bytes(encode_png(pixels))
    with Image.open(path) as image:  # greyscale is the one 16-bit kind that Pillow reads whole
        np.testing.assert_array_equal(np.asarray(image), pixels[..., 0])
    colour = levels(3, np.uint16)
    path.write_bytes(encode_png(colour))
    with Image.open(path) as image:
        np.testing.assert_array_equal(np.asarray(image), colour >> 8)


@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"compression": "zlib"}])
def test_16_bit_tiff_is_read_whole(tmp_path, options):
    tifffile = pytest.importorskip("tifffile")
    pixels = levels(3, np.uint16)
    tifffile.imwrite(tmp_path / "x.tif", pixels, photometric="rgb", **options)
    image = read_image(tmp_path / "x.tif")
    assert image.bits == 16
    np.testing.assert_array_equal(quantise(image.pixels, 16), pixels)
    tifffile.imwrite(tmp_path / "planes.tif", np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig=2)
    with pytest.raises(ValueError, match="separate planes"):
        read_image(tmp_path / "planes.tif")


@pytest.mark.parametrize("name, options", [("x.bmp", {}), ("x.tif", {}), ("x.webp", {"lossless": True})])
def test_other_lossless_formats(tmp_path, name, options):
    pixels = levels(3)
    Image.fromarray(pixels).save(tmp_path / name, **options)
    image = read_image(tmp_path / name)
    np.testing.assert_array_equal(quantise(image.pixels), pixels)
    assert image.alpha is None and image.bits == 8 and not image.grey


def test_palettes_become_colours_and_their_transparency_alpha(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "x.png", transparency=1)
    image = read_image(tmp_path / "x.png")
    np.testing.assert_array_equal(image.pixels, [[[1, 0, 0], [0, 1, 0]]])
    np.testing.assert_array_equal(image.alpha, [[1, 0]])


def test_ink_images_become_rgb_without_their_profile(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 128)).save(tmp_path / "x.jpg", icc_profile=b"inks")
    image = read_image(tmp_path / "x.jpg")
    np.testing.assert_allclose(image.pixels, 127 / 255, atol=0.02)
    assert image.icc is None and not image.grey


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(tmp_path, orientation, name):
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :8] = 255  # only the top left corner is white
    # How a camera held otherwise stores the same scene.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose members
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / name, exif=exif, quality=95)
    assert np.abs(read_image(tmp_path / name).pixels - upright / 255).max() < 0.1


@pytest.mark.parametrize("damage", ["empty", "text", "truncated"])
def test_what_is_no_image_is_refused_by_name(tmp_path, damage):
    whole = encode_png(levels(3, shape=(64, 64)))
    path = tmp_path / "broken.png"
    path.write_bytes({"empty": b"", "text": b"hello", "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ValueError, match=r"broken\.png"):
        read_image(path)
    with pytest.raises(FileNotFoundError, match=r"absent\.png"):
        read_image(tmp_path / "absent.png")


def test_animations_and_floats_are_refused(tmp_path):
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="2 frames"):
        read_image(tmp_path / "x.gif")
    Image.new("F", (2, 2)).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match="floating-point"):
        read_image(tmp_path / "x.tif")


def test_quantisation_rounds_half_to_even_and_truncation_darkens():
    values = np.array([0.5, 1.5, 2.5, -9, 999], np.float32) / 255
    np.testing.assert_array_equal(quantise(values), [0, 2, 2, 0, 255])
    np.testing.assert_array_equal(quantise(values, rounding="truncate"), [0, 1, 2, 0, 255])
    for bits in (8, 16):
        every = np.arange(2**bits)
        np.testing.assert_array_equal(quantise((every / every[-1]).astype(np.float32), bits), every)
    with pytest.raises(ValueError, match="finite"):
        quantise(np.array([np.nan]))
    with pytest.raises(ValueError, match="bits"):
        quantise(values, 12)


def test_unfit_images_are_not_written(tmp_path):
    pixels = np.zeros((2, 2, 3), np.float32)
    for path, image, message in [
        ("x.gif", LoadedImage(pixels), r"x\.gif.*\.png"),
        ("x.png", LoadedImage(pixels[..., :2]), "height, width, 3"),
        ("x.png", LoadedImage(pixels, alpha=np.zeros((3, 2))), "alpha"),
        ("x.png", LoadedImage(pixels * np.nan), r"x\.png.*finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            write_image(tmp_path / path, image)
    assert not list(tmp_path.iterdir())


def test_padding_reflects_without_repeating_the_edge():
    image = np.arange(3, dtype=np.float32)[None, :, None].repeat(3, 0)
    padded = pad_to(image, multiple=4, min_size=7)
    assert padded.shape == (8, 8, 1)
    np.testing.assert_array_equal(padded[0, :, 0], [0, 1, 2, 1, 0, 1, 2, 1])
    np.testing.assert_array_equal(crop_to(padded, 3, 3), image)


@pytest.mark.parametrize("shape, expected", [((1, 1, 3), (512, 512, 3)), ((513, 1, 3), (576, 512, 3))])
def test_padding_of_tiny_images(shape, expected):
    image = np.random.default_rng(0).random(shape)
    padded = pad_to(image)
    assert padded.shape == expected
    np.testing.assert_array_equal(padded[0], np.broadcast_to(image[0], padded[0].shape))


def test_padding_leaves_fitting_images_and_batches_alone():
    batch = np.random.default_rng(0).random((2, 64, 128, 3))
    np.testing.assert_array_equal(pad_to(batch, 64, 64), batch)
    assert pad_to(batch[:, 1:], 64, 64).shape == batch.shape


def png_with(chunk: bytes, data: bytes) -> bytes:
    """A PNG with a chunk before its pixels."""
    plain = encode_png(levels(3))
    return (
        plain[:33]
        + struct.pack(">I", len(data))
        + chunk
        + data
        + struct.pack(">I", zlib.crc32(chunk + data))
        + plain[33:]
    )


@pytest.mark.parametrize(
    ("chunk", "data", "note"),
    [
        (b"gAMA", struct.pack(">I", 100000), r"its colours are gamma 1 \(by its gAMA"),
        (b"gAMA", struct.pack(">I", 45455), None),
        (b"cICP", bytes([9, 16, 0, 1]), "colour primaries 9 with PQ"),
        (b"cICP", bytes([1, 13, 0, 1]), None),
    ],
)
def test_colours_that_are_not_kept_are_said(tmp_path, chunk, data, note):
    (tmp_path / "a.png").write_bytes(png_with(chunk, data))
    notes = read_image(tmp_path / "a.png").notes
    assert (notes == ()) if note is None else re.search(note, notes[0])


def test_adobe_rgb_by_exif_and_lost_bits_are_said(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    Image.fromarray(levels(3)).save(tmp_path / "a.jpg", exif=exif)
    assert "Adobe RGB" in read_image(tmp_path / "a.jpg").notes[0]
    assert depth_in_file(b"\xff\x4f\xff\x51" + bytes(38) + b"\x0b", "JPEG2000") == 12
    assert depth_in_file(b"....pixi\0\0\0\0\x03\x0a\x0a\x0a", "AVIF") == 10
    assert depth_in_file(b"\xff\xd8", "JPEG") == 8


def test_pillow_images_become_pixels_upright():
    grey = Image.fromarray(levels(1)[..., 0])
    np.testing.assert_array_equal(pixels_of_pillow(grey), np.asarray(grey))
    assert pixels_of_pillow(grey.convert("P")).shape == (6, 5, 3)
    assert pixels_of_pillow(grey.convert("LA")).shape == (6, 5, 4)
    turned = Image.fromarray(levels(3))
    turned.getexif()[0x0112] = 6
    assert pixels_of_pillow(turned).shape == (5, 6, 3)
    with pytest.raises(ValueError, match="mode F has no fixed range"):
        pixels_of_pillow(grey.convert("F"))
