"""Read and write image files, keeping bit depth, transparency and colour profile.

Decoding itself is `data_pipelines.images`. Writing is PNG, lossless, with 8 or 16 bits.
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from data_pipelines.files import write_atomically
from data_pipelines.image_headers import colour_description, depth_in_file
from data_pipelines.image_limits import formats, without_pillows_limit
from data_pipelines.images import as_float, decode_with_alpha

Rounding = Literal["round", "truncate"]


@dataclass(frozen=True)
class LoadedImage:
    """An image as the models take it, and what is needed to write it back alike.

    Args:
        pixels: float32 (height, width, 3) RGB in [0, 1], upright (EXIF orientation applied).
        alpha: float32 (height, width) in [0, 1], or None. Colours are not multiplied by it.
        bits: per channel in the file, 8 or 16.
        grey: the file has a single colour channel; `pixels` holds it three times.
        icc: the colour profile that the numbers refer to, or None.
        notes: what of the file is lost, one sentence each: bits that are not read, colours described in a way that is
            not kept.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8
    grey: bool = False
    icc: bytes | None = None
    notes: tuple[str, ...] = ()


def read_image(path: str | os.PathLike[str]) -> LoadedImage:
    """Reads JPEG, PNG (8 or 16 bits), TIFF, WebP, BMP and the other formats Pillow knows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `data_pipelines.images.decode_image`; names the file.
    """
    path = Path(path)
    colours, alpha = decode_with_alpha(path)
    data = path.read_bytes()
    with without_pillows_limit(), Image.open(io.BytesIO(data), formats=formats()) as file:
        # Pillow opens grey with alpha of 16 bits as RGBA; only the layout of the samples shows the depth.
        layouts = [str(tile.args) for tile in file.tile]  # type: ignore[attr-defined]
        grey = file.mode in ("1", "L", "LA", "La") or file.mode.startswith("I") or layouts == ["LA;16B"]
        # A profile for inks or Lab says nothing about the RGB values made from them.
        keeps_profile = grey or file.mode in ("RGB", "RGBA", "RGBX", "P", "PA")
        icc = file.info.get("icc_profile") if keeps_profile else None
        notes = _notes(file, data)
    return LoadedImage(
        pixels=as_float(colours),
        alpha=None if alpha is None else as_float(alpha),
        bits=8 * colours.dtype.itemsize,
        grey=grey,
        icc=icc or None,
        notes=notes,
    )


def _notes(file: Image.Image, data: bytes) -> tuple[str, ...]:
    notes = []
    if (bits := depth_in_file(data, file.format)) > 8:
        notes.append(f"its {bits} bits are read as 8; convert it to a PNG of 16 bits to keep them")
    if colours := colour_description(file, data):
        notes.append(f"its colours are {colours}; the result does not say so, and viewers will take it for sRGB")
    return tuple(notes)


def pixels_of_pillow(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image, upright: uint8 or uint16, (height, width), (height, width, 3) or 4 with alpha.

    Raises:
        ValueError: its samples have no fixed range (modes I and F).
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"a Pillow image of mode {image.mode} has no fixed range; convert it to L, RGB or I;16")
    if (image.mode in ("L", "RGB", "RGBA") and not image.has_transparency_data) or image.mode == "RGBA":
        return np.asarray(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    return np.asarray(image.convert("RGBA" if image.has_transparency_data else "L" if image.mode == "1" else "RGB"))


def write_image(path: str | os.PathLike[str], image: LoadedImage, rounding: Rounding = "round") -> None:
    """Writes a PNG with the image's bit depth, alpha, greyness and colour profile, atomically.

    A grey image is written from the luma (ITU-R BT.601 weights) of its pixels.

    Raises:
        ValueError: the name does not end in .png, shapes that do not fit, or pixels that are not finite.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path}: images are written as PNG; give a name that ends in .png")
    if image.pixels.ndim != 3 or image.pixels.shape[2] != 3 or 0 in image.pixels.shape:
        raise ValueError(f"{path}: pixels must be (height, width, 3), got {image.pixels.shape}")
    channels = image.pixels
    if image.grey:
        channels = channels @ np.array([[0.299], [0.587], [0.114]], np.float32)
    if image.alpha is not None:
        if image.alpha.shape != channels.shape[:2]:
            raise ValueError(f"{path}: alpha is {image.alpha.shape}, the pixels are {channels.shape[:2]}")
        channels = np.concatenate([channels, image.alpha[..., None]], -1)
    try:
        levels = quantise(channels, image.bits, rounding)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    write_atomically(path, encode_png(levels, image.icc))


def quantise(values: np.ndarray, bits: int = 8, rounding: Rounding = "round") -> np.ndarray:
    """[0, 1] to uint8 or uint16, clipped.

    Args:
        rounding: `round` is half to even; `truncate` is what the public release does, which
            darkens by half a level on average.

    Raises:
        ValueError: another bit depth or rounding, or values that are not finite.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits must be 8 or 16, got {bits}")
    if rounding not in ("round", "truncate"):
        raise ValueError(f"rounding must be 'round' or 'truncate', got {rounding!r}")
    if not np.isfinite(values).all():
        raise ValueError("pixels are not finite")
    scaled = np.clip(np.asarray(values, np.float32), 0, 1) * np.float32(2**bits - 1)
    return (np.rint(scaled) if rounding == "round" else scaled).astype(np.uint8 if bits == 8 else np.uint16)


def encode_png(levels: np.ndarray, icc: bytes | None = None) -> bytes:
    """uint8 or uint16 (height, width, 1 to 4 channels: grey, grey + alpha, RGB, RGBA) as a PNG file.

    Pillow cannot write 16-bit colour, so those files are put together here.
    """
    if levels.dtype == np.uint8:
        stream = io.BytesIO()
        mode = ("L", "LA", "RGB", "RGBA")[levels.shape[2] - 1]
        image = Image.fromarray(levels[..., 0] if mode == "L" else levels)
        assert image.mode == mode
        image.save(stream, "PNG", icc_profile=icc)
        return stream.getvalue()
    height, width, channels = levels.shape
    colour_type = (0, 4, 2, 6)[channels - 1]
    header = struct.pack(">2I5B", width, height, 16, colour_type, 0, 0, 0)
    profile = b"" if icc is None else _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    rows = levels.astype(">u2").view(np.uint8).reshape(height, -1)
    data = _chunk(b"IDAT", zlib.compress(_paeth(rows, 2 * channels).tobytes(), 6))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + profile + data + _chunk(b"IEND", b"")


def pad_to(image: np.ndarray, multiple: int = 64, min_size: int = 512) -> np.ndarray:
    """Extends (..., height, width, channels) at the bottom and right by reflection.

    Both sides become at least `min_size` and multiples of `multiple`. The edge pixel is not
    repeated; reflections go back and forth where the image is smaller than its padding,
    and a side of one pixel is repeated. `crop_to` undoes it.
    """

    def missing(side: int) -> int:
        return -(-max(side, min_size) // multiple) * multiple - side

    height, width = image.shape[-3:-1]
    widths = [(0, 0)] * (image.ndim - 3) + [(0, missing(height)), (0, missing(width)), (0, 0)]
    return np.pad(image, widths, mode="reflect")


def crop_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The top left part of (..., height, width, channels)."""
    return image[..., :height, :width, :]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _paeth(rows: np.ndarray, distance: int) -> np.ndarray:
    """Rows of bytes after PNG's filter 4, each with the filter's number in front.

    `distance` is the number of bytes of a pixel.
    """
    values = rows.astype(np.int16)
    padded = np.pad(values, ((1, 0), (distance, 0)))
    left, above, corner = padded[1:, :-distance], padded[:-1, distance:], padded[:-1, :-distance]
    estimate = left + above - corner
    to_left, to_above, to_corner = (np.abs(estimate - near) for near in (left, above, corner))
    nearest_of_two = np.where(to_above <= to_corner, above, corner)
    closest = np.where((to_left <= to_above) & (to_left <= to_corner), left, nearest_of_two)
    filtered = ((values - closest) % 256).astype(np.uint8)
    return np.concatenate([np.full((len(rows), 1), 4, np.uint8), filtered], 1)
