"""Reading images: every mode to the right numbers, every broken file to one clear error."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.image_limits import VARIABLE
from data_pipelines.images import as_float, checked_size, decode_image, is_image, read_image, stated_size

COLOURS = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[9, 8, 7], [200, 100, 50], [0, 0, 0]]], np.uint8)


def png_16_bits(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG by hand, because Pillow cannot write one in colour."""
    height, width, channels = pixels.shape
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_rgb_is_float32_between_0_and_1(tmp_path):
    Image.fromarray(COLOURS).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.dtype == np.float32 and image.flags.c_contiguous
    np.testing.assert_array_equal(image, COLOURS.astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_png_keeps_every_bit_and_drops_alpha(tmp_path, channels):
    pixels = np.random.default_rng(channels).integers(0, 65536, (5, 7, channels)).astype(np.uint16)
    (tmp_path / "a.png").write_bytes(png_16_bits(pixels))
    decoded = decode_image(tmp_path / "a.png")
    expected = pixels[..., :3] if channels >= 3 else np.repeat(pixels[..., :1], 3, axis=2)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_allclose(as_float(decoded), expected / 65535, rtol=1e-6)


def test_grey_palette_and_one_bit(tmp_path):
    Image.fromarray(COLOURS[..., 1]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "grey.png"), COLOURS[..., [1, 1, 1]])
    Image.fromarray(COLOURS).quantize(6).save(tmp_path / "palette.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "palette.png"), COLOURS)
    Image.fromarray(COLOURS[..., 0] > 100).save(tmp_path / "one.png")
    assert set(decode_image(tmp_path / "one.png").ravel()) == {0, 255}


def test_alpha_is_dropped_not_blended(tmp_path):
    alpha = np.full((*COLOURS.shape[:2], 1), 3, np.uint8)
    Image.fromarray(np.concatenate([COLOURS, alpha], axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png"), COLOURS)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(COLOURS).save(path, exif=exif)
    # What a viewer does, in words of the standard: where row 0 and column 0 of the file belong.
    expected = {
        1: COLOURS,
        2: COLOURS[:, ::-1],
        3: COLOURS[::-1, ::-1],
        4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2),
        6: np.rot90(COLOURS, -1),
        7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
        8: np.rot90(COLOURS, 1),
    }[orientation]
    np.testing.assert_array_equal(decode_image(path), expected)


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (10, 20, 30)).save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png").tolist() == [[[10, 20, 30]]]


@pytest.mark.parametrize("kind", ["zero bytes", "truncated jpeg", "truncated png", "text"])
def test_broken_files_are_named(tmp_path, kind):
    path = tmp_path / "broken.png"
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))
    if kind == "zero bytes":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("no image")
    else:
        noise.save(path, format=kind.split()[1])
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    what = "the file is empty" if kind == "zero bytes" else ""
    with pytest.raises(ValueError, match=rf"cannot read the image .*broken\.png: {what}"):
        decode_image(path)


def test_missing_file_and_float_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        decode_image(tmp_path / "none.png")
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ValueError, match="fixed range"):
        decode_image(tmp_path / "f.tif")


KINDS = {"PNG": "RGB L P RGBA I;16", "JPEG": "RGB L CMYK", "TIFF": "RGB L P RGBA CMYK I;16", "WEBP": "RGB RGBA"}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in KINDS for mode in KINDS[kind].split()])
def test_bytes_are_read_like_files_and_sizes_like_images(tmp_path, kind, mode):
    image = Image.fromarray(COLOURS) if mode != "I;16" else Image.fromarray(COLOURS[..., 0].astype(np.uint16))
    image = image if mode == "I;16" else image.convert(mode)
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(stored, kind, exif=exif)
    (tmp_path / "a").write_bytes(stored.getvalue())
    pixels = decode_image(tmp_path / "a")
    np.testing.assert_array_equal(decode_image(stored.getvalue()), pixels)
    assert checked_size(stored.getvalue()) == checked_size(tmp_path / "a") == pixels.shape[:2] == (3, 2)
    assert stated_size(tmp_path / "a") == (3, 2)


def test_sizes_of_16_bit_colours_and_broken_bytes():
    content = png_16_bits(np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16))
    assert checked_size(content) == decode_image(content).shape[:2] == (5, 7)
    assert decode_image(content).dtype == np.uint16
    for broken in (b"", b"no image", content[:90]):
        with pytest.raises(ValueError, match="cannot read the image: "):
            checked_size(broken)


def tiff(samples: np.ndarray, bits: int, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A TIFF (little-endian, one strip) whose tags say what is asked for, whatever the samples are."""
    height, width = samples.shape[:2]
    channels = 1 if samples.ndim == 2 else samples.shape[2]
    data = samples.tobytes()
    entries = [
        (256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
        (277, 3, channels), (278, 4, height), (279, 4, len(data)), (339, 3, sample_format),
    ]  # fmt: skip
    after = b""
    start = 8 + len(data) + 2 + 12 * len(entries) + 4
    directory = struct.pack("<H", len(entries))
    for tag, kind, value in entries:
        many = channels if tag in (258, 339) else 1
        if many > 2:
            directory += struct.pack("<HHII", tag, kind, many, start + len(after))
            after += struct.pack(f"<{many}H", *[value] * many)
        else:
            directory += struct.pack("<HHII", tag, kind, many, value)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + struct.pack("<I", 0) + after


GREY16 = np.array([[0, 1000, 65535], [40000, 12, 300]], np.uint16)


def test_the_tags_of_a_tiff_give_its_samples_their_meaning():
    np.testing.assert_array_equal(decode_image(tiff(GREY16, 16))[..., 0], GREY16)
    np.testing.assert_array_equal(decode_image(tiff(GREY16, 16, photometric=0))[..., 1], 65535 - GREY16)
    eight = (GREY16 // 257).astype(np.uint8)
    np.testing.assert_array_equal(decode_image(tiff(eight, 8, photometric=0))[..., 0], 255 - eight)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff((GREY16 // 2).astype(np.int16), 16, sample_format=2), "signed samples have no fixed range"),
        (tiff(GREY16.astype(np.uint32), 32), "samples of 32 bits have no fixed range"),
        (tiff(GREY16.astype(np.float32), 32, sample_format=3), "floating-point samples have no fixed range"),
        (tiff(np.zeros((2, 2, 3), np.float32), 32, 2, 3), "floating-point samples have no fixed range"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n",
            "it is PostScript, a program",
        ),
        (b"II*\0\xff\xff\xff\x7f", "TIFF"),
    ],
)
def test_what_cannot_be_read_says_the_true_reason(content, reason):
    for read in (decode_image, checked_size):
        with pytest.raises(ValueError, match=reason):
            read(content)


@pytest.mark.parametrize("most", [65535, 1023])
def test_a_ppm_of_16_bits_keeps_them(most):
    samples = np.random.default_rng(0).integers(0, most, (3, 4, 3), endpoint=True)
    content = b"P6\n# a comment\n4 3\n%d\n" % most + samples.astype(">u2").tobytes()
    decoded = decode_image(content)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, np.rint(samples * (65535 / most)))
    with pytest.raises(ValueError, match="cut short"):
        decode_image(content[:-1])


def test_the_first_page_is_read_where_the_others_are_reduced_versions_of_it(tmp_path):
    first, small = Image.fromarray(COLOURS), Image.fromarray(COLOURS[:1, :1])
    for reduced in (1, 0):
        small.encoderinfo = {"tiffinfo": {254: reduced}}
        first.save(tmp_path / "a.tif", save_all=True, append_images=[small])
        if reduced:
            np.testing.assert_array_equal(decode_image(tmp_path / "a.tif"), COLOURS)
        else:
            with pytest.raises(ValueError, match="it has 2 frames"):
                decode_image(tmp_path / "a.tif")


def test_the_limit_is_our_own_and_can_be_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # Pillow refuses at twice as many.
    np.testing.assert_array_equal(decode_image(png_16_bits(np.zeros((4, 4, 1), np.uint16))), 0)
    assert Image.MAX_IMAGE_PIXELS == 4
    monkeypatch.setenv(VARIABLE, "0.00001")
    with pytest.raises(ValueError, match=rf"more than the 0 that .* set the environment variable {VARIABLE}"):
        decode_image(png_16_bits(np.zeros((4, 4, 1), np.uint16)))
    monkeypatch.setenv(VARIABLE, "many")
    with pytest.raises(ValueError, match=f"{VARIABLE} must be a positive number"):
        decode_image(png_16_bits(np.zeros((4, 4, 1), np.uint16)))


def test_a_size_that_the_file_cannot_hold_is_refused_before_anything_is_allocated():
    content = bytearray(png_16_bits(np.zeros((4, 4, 3), np.uint16)))
    content[16:24] = struct.pack(">II", 20000, 20000)
    content[29:33] = struct.pack(">I", zlib.crc32(bytes(content[12:29])))
    with pytest.raises(ValueError, match=r"it says 20000x20000, more than its .* bytes can hold"):
        decode_image(bytes(content))


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """Bytes changed, cut or doubled at random places."""
    data = bytearray(content)
    for _ in range(int(rng.integers(1, 6))):
        where = int(rng.integers(len(data)))
        action = rng.integers(4)
        if action == 0:
            data[where] = int(rng.integers(256))
        elif action == 1:
            data[where : where + 4] = b"\xff\xff\xff\x7f"
        elif action == 2:
            del data[where : where + int(rng.integers(1, 9))]
        else:
            del data[max(where, 8) :]
    return bytes(data) or b"x"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "AVIF", "JPEG2000", "TGA", "ICO"])
def test_damaged_files_raise_one_kind_of_error(kind):
    stored = io.BytesIO()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3)).astype(np.uint8))
    image = image.quantize(16) if kind in ("GIF", "PNG") else image
    image.save(stored, kind)
    rng = np.random.default_rng(1)
    failed = 0
    for _ in range(120):
        content = mutated(stored.getvalue(), rng)
        for read in (decode_image, checked_size, stated_size):
            try:
                read(content)
            except ValueError as error:
                failed += 1
                assert str(error).startswith("cannot read the image: ")
    assert failed


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    assert not is_image(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: it is a folder, a pipe or a device"):
        decode_image(tmp_path / "pipe.png")
