"""Reading pictures: any common file to RGB pixels, with the depth it was stored in."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


def decode_picture(path: str | Path) -> np.ndarray:
    """The pixels of a picture file.

    Greyscale becomes three equal channels, palettes become their colours, alpha is dropped (not blended),
    16-bit PNG keeps its 16 bits, and the EXIF orientation is applied.

    Returns:
      uint8 or uint16 (height, width, 3), RGB, contiguous.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is empty, truncated, no picture, or of a kind without a fixed range (floating
        point).
    """
    try:
        with Image.open(path) as picture:
            pixels = _pixels(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"no picture at {path}") from None
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the picture {path}: {error}; replace it or take it out") from error
    return np.ascontiguousarray(pixels)


def as_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 pixels as float32 in [0, 1]; a float32 array is returned as it is."""
    if pixels.dtype == np.float32:
        return pixels
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels must be uint8, uint16 or float32, not {pixels.dtype}")
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def read_picture(path: str | Path) -> np.ndarray:
    """A picture file as float32 (height, width, 3) RGB in [0, 1]; errors as in `decode_picture`."""
    return as_float(decode_picture(path))


def _pixels(picture: Image.Image) -> np.ndarray:
    if picture.mode == "F":
        raise ValueError("floating-point pictures have no fixed range; convert it to 8 or 16 bits")
    if _is_png_with_16_bits(picture):
        pixels = _png_16_bits(picture)
    elif picture.mode.startswith("I"):
        # Greyscale of 16 bits; Pillow has held it as I;16 or, in some formats, as 32-bit integers.
        pixels = np.asarray(picture)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError("32-bit pictures have no fixed range; convert it to 8 or 16 bits")
        pixels = np.repeat(pixels.astype(np.uint16)[..., None], 3, axis=2)
    else:
        # Pillow's RGBA to RGB leaves the colours alone and drops alpha; a palette goes through its colours.
        pixels = np.asarray(picture.convert("RGB"))
    # After the pixels: a PNG may hold its EXIF behind them.
    return _upright(pixels, picture.getexif().get(0x0112, 1))


def _is_png_with_16_bits(picture: Image.Image) -> bool:
    # The tile of an unread PNG names its raw layout: RGB;16B, RGBA;16B, LA;16B, or I;16B for plain grey.
    if not isinstance(picture, PngImageFile) or not picture.tile:
        return False
    return str(picture.tile[0].args) in ("RGB;16B", "RGBA;16B", "LA;16B")


def _png_16_bits(picture: Image.Image) -> np.ndarray:
    """All 16 bits of a colour PNG.

    Pillow has no 16-bit colour mode: it decodes big-endian samples and keeps the high byte. Reading the same
    stream as little-endian samples keeps the other one, so two decodes give the whole number.
    """
    with Image.open(picture.filename) as low:  # type: ignore[attr-defined]
        layout = str(low.tile[0].args)
        if layout == "LA;16B":
            # Grey and alpha of 16 bits are four bytes a pixel, the same filter distance as 8-bit RGBA.
            low._mode = "RGBA"
            low.tile = [low.tile[0]._replace(args="RGBA")]
            bytes_ = np.asarray(low).astype(np.uint16)
            return np.repeat(bytes_[..., :1] << 8 | bytes_[..., 1:2], 3, axis=2)
        low.tile = [low.tile[0]._replace(args=layout.replace("16B", "16L"))]
        high_bytes = np.asarray(picture).astype(np.uint16)[..., :3]
        return high_bytes << 8 | np.asarray(low)[..., :3]


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies EXIF orientation 1..8 (CIPA DC-008, tag 0x0112); an undefined value changes nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
