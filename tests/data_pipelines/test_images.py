"""Reading images: every mode to the right numbers, every broken file to one clear error."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data_pipelines.images import as_float, checked_size, decode_image, read_image

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


def test_sizes_of_16_bit_colours_and_broken_bytes():
    content = png_16_bits(np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16))
    assert checked_size(content) == decode_image(content).shape[:2] == (5, 7)
    assert decode_image(content).dtype == np.uint16
    for broken in (b"", b"no image", content[:90]):
        with pytest.raises(ValueError, match="cannot read the image: "):
            checked_size(broken)
