"""Reading images: any common file to RGB pixels and alpha, with the depth it was stored in."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from data_pipelines.image_headers import (
    ORIENTATION,
    check_samples,
    colour_netpbm,
    extra_images,
    grey_levels,
    reason_unknown,
    upright_size,
)
from data_pipelines.image_limits import check_size, formats, without_pillows_limit

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")


def decode_image(source: str | Path | bytes, name: str = "") -> np.ndarray:
    """The colours of an image file, given by its path or by its bytes.

    Greyscale becomes three equal channels, palettes become their colours, alpha is dropped (not blended),
    16-bit PNG, TIFF and PPM keep their 16 bits, and the EXIF orientation is applied. Of a TIFF with reduced versions
    of its image the first page is taken.

    Args:
      name: of bytes, for errors.

    Returns:
      uint8 or uint16 (height, width, 3), RGB, contiguous.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is empty, damaged, no image, animated, too large for this machine, or its samples have no
        fixed range (floating-point, signed or 32-bit ones).
    """
    return decode_with_alpha(source, name)[0]


def decode_with_alpha(source: str | Path | bytes, name: str = "") -> tuple[np.ndarray, np.ndarray | None]:
    """What `decode_image` returns, and the opacity of every pixel.

    Returns:
      (colours, alpha): alpha has the dtype of the colours and shape (height, width); None where the file has
      no transparency of any kind.
    """
    with _reading(source, name) as (image, data):
        channels = _channels(image, data)
    alpha = np.ascontiguousarray(channels[..., 3]) if channels.shape[-1] == 4 else None
    return np.ascontiguousarray(channels[..., :3]), alpha


def checked_size(source: str | Path | bytes) -> tuple[int, int]:
    """(height, width) of what `decode_image` returns, and its errors: the image is decoded for them.

    Common images are not made an array of, which leaves other threads their time.
    """
    with _reading(source) as (image, data):
        one_frame = getattr(image, "n_frames", 1) == 1
        if image.format not in ("JPEG", "PNG", "BMP") or image.mode not in ("RGB", "L", "P") or not one_frame:
            height, width = _channels(image, data).shape[:2]
            return height, width
        image.load()
        return upright_size(image)


def stated_size(source: str | Path | bytes) -> tuple[int, int]:
    """(height, width) of what `decode_image` returns, by the header alone: a damaged image may pass.

    Raises:
      FileNotFoundError, ValueError: as `decode_image`, for what the header shows.
    """
    with _reading(source) as (image, _):
        return upright_size(image)


def is_image(path: str | Path) -> bool:
    """Whether the content of a file, whatever its name is, starts like an image that Pillow knows."""
    try:
        # A pipe would be waited for.
        if not Path(path).is_file():
            return False
        with without_pillows_limit(), Image.open(path, formats=formats()):
            return True
    except Exception:  # Pillow raises anything for files that are none.
        return False


def as_float(pixels: np.ndarray) -> np.ndarray:
    """uint8 or uint16 pixels as float32 in [0, 1]; a float32 array is returned as it is."""
    if pixels.dtype == np.float32:
        return pixels
    if pixels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"pixels must be uint8, uint16 or float32, not {pixels.dtype}")
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def read_image(path: str | Path) -> np.ndarray:
    """An image file as float32 (height, width, 3) RGB in [0, 1]; errors as in `decode_image`."""
    return as_float(decode_image(path))


@contextlib.contextmanager
def _reading(source: str | Path | bytes, name: str = "") -> Iterator[tuple[ImageFile.ImageFile, bytes]]:
    """The opened image and its file's bytes; whatever goes wrong becomes one of two errors that name it."""
    try:
        # From memory, not by name: named files may be mapped, and a mapped TIFF forgets to turn itself upright.
        data = source if isinstance(source, bytes) else _bytes_of(Path(source))
        with _opened(data) as image:
            check_size(image, len(data))
            yield image, data
    except FileNotFoundError:
        raise FileNotFoundError(f"no image at {source!s}") from None
    except Exception as error:  # Of a damaged file, the decoders of Pillow raise anything.
        shown = f" {name if isinstance(source, bytes) else source}".rstrip()
        reason = str(error) or type(error).__name__
        raise ValueError(f"cannot read the image{shown}: {reason}; replace it or take it out") from error


def _bytes_of(path: Path) -> bytes:
    if path.exists() and not path.is_file():
        # A pipe without a writer would be waited for without end.
        raise ValueError("it is a folder, a pipe or a device, not a file")
    return path.read_bytes()


def _opened(data: bytes) -> ImageFile.ImageFile:
    if not data:
        raise ValueError("the file is empty")
    try:
        with without_pillows_limit():
            return Image.open(io.BytesIO(data), formats=formats())
    except UnidentifiedImageError:
        raise ValueError(reason_unknown(data)) from None


def _channels(image: Image.Image, data: bytes) -> np.ndarray:
    """uint8 or uint16 (height, width, 3 or 4): RGB and, where the file has one, alpha."""
    if image.mode == "F":
        raise ValueError("floating-point samples have no fixed range; convert it to 8 or 16 bits")
    if image.format == "TIFF":
        check_samples(image.tag_v2)  # type: ignore[attr-defined]
    if more := extra_images(image):
        raise ValueError(f"it has {more + 1} frames")
    if image.format == "PPM" and (deep := colour_netpbm(data)) is not None:
        return deep
    layout = _layout(image)
    # TIFF turns itself upright while loading and PNG may state its orientation behind the pixels.
    image.load()
    orientation = image.getexif().get(ORIENTATION, 1)
    if ";16" in layout and not image.mode.startswith("I"):
        channels = _colour_of_16_bits(image, data, layout)
    elif image.mode.startswith("I"):
        # Greyscale of 16 bits; Pillow has held it as I;16 or, in some formats, as 32-bit integers.
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("32-bit images have no fixed range; convert it to 8 or 16 bits")
        channels = np.repeat(grey_levels(grey, image)[..., None], 3, axis=2)
    else:
        if image.format == "TIFF" and max(image.tag_v2.get(258, (1,))) > 8:  # type: ignore[attr-defined]
            raise ValueError("a TIFF of more than 8 bits in separate planes; store it interleaved or as PNG")
        # To RGBA, Pillow leaves colours alone; a palette goes through its colours.
        mode = "RGBA" if image.has_transparency_data else "RGB"
        # `convert` copies even where there is nothing to convert.
        channels = np.asarray(image if image.mode == mode else image.convert(mode))
    if channels.dtype == np.uint16 and "transparency" in image.info:
        # The one colour that stands for "nothing here".
        clear = (channels[..., :3] == image.info["transparency"]).all(-1, keepdims=True)
        channels = np.concatenate([channels, np.where(clear, 0, 65535).astype(np.uint16)], -1)
    return channels if orientation == 1 else _upright(channels, orientation)


def _layout(image: Image.Image) -> str:
    """How samples lie in the file, in Pillow's terms: 'RGB', 'RGB;16B' (big-endian), 'LA;16B' ..."""
    if not image.tile:  # type: ignore[attr-defined]
        return ""
    arguments = image.tile[0].args  # type: ignore[attr-defined]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _colour_of_16_bits(image: Image.Image, data: bytes, layout: str) -> np.ndarray:
    """All 16 bits of the colours (and alpha) of a PNG or TIFF.

    Pillow has no 16-bit colour mode: it decodes big-endian samples and keeps the high byte. Reading the same
    stream in the other byte order keeps the low one, so two decodes give the whole number.
    """
    if image.mode not in ("RGB", "RGBA") and layout != "LA;16B":
        raise ValueError(f"16-bit samples of the kind {image.mode}; convert it to RGB")
    with _opened(data) as low:
        if layout == "LA;16B":
            # Grey and alpha of 16 bits are four bytes a pixel, the same filter distance as 8-bit RGBA.
            low._mode = "RGBA"
            low.tile = [tile._replace(args="RGBA") for tile in low.tile]
            grey, alpha = np.moveaxis(np.asarray(low).copy().view(">u2").astype(np.uint16), -1, 0)
            return np.stack([grey, grey, grey, alpha], -1)
        native = "L" if sys.byteorder == "little" else "B"
        order = layout[-1].replace("N", native)
        swapped = layout[:-1] + ("L" if order == "B" else "B")
        low.tile = [
            tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
            for tile in low.tile
        ]
        return np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Applies EXIF orientation 1..8 (CIPA DC-008, tag 0x0112); an undefined value changes nothing."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
