"""Read and write image files, keeping bit depth, transparency, colour profile and metadata.

Decoding itself is `data_pipelines.images`, encoding `image_encoding`.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from data_pipelines.files import write_atomically
from data_pipelines.image_headers import colour_description, depth_in_file
from data_pipelines.image_limits import formats, without_pillows_limit
from data_pipelines.images import as_float, decode_with_alpha
from mperceiver_jax.image_encoding import DEEP, FORMATS, QUALITY, encode
from mperceiver_jax.image_metadata import NO_METADATA, Metadata, read_metadata

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
        metadata: EXIF, XMP, IPTC and resolution, as they hold for the upright image.
        notes: what of the file is lost, one sentence each: bits that are not read, colours described in a way that is
            not kept, damaged metadata.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None = None
    bits: int = 8
    grey: bool = False
    icc: bytes | None = None
    metadata: Metadata = NO_METADATA
    notes: tuple[str, ...] = ()


def read_image(path: str | os.PathLike[str]) -> LoadedImage:
    """Reads JPEG, PNG (8 or 16 bits), TIFF, WebP, BMP and the other formats Pillow knows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: see `data_pipelines.images.decode_image`; names the file.
    """
    path = Path(path)
    # The decoder first: it knows what is no regular file.
    colours, alpha = decode_with_alpha(path)
    return _loaded(path.read_bytes(), colours, alpha)


def loaded(data: bytes) -> LoadedImage:
    """As `read_image`, of the bytes of a file."""
    return _loaded(data, *decode_with_alpha(data))


def _loaded(data: bytes, colours: np.ndarray, alpha: np.ndarray | None) -> LoadedImage:
    with without_pillows_limit(), Image.open(io.BytesIO(data), formats=formats()) as file:
        # Pillow opens grey with alpha of 16 bits as RGBA; only the layout of the samples shows the depth.
        layouts = [str(tile.args) for tile in file.tile]  # type: ignore[attr-defined]
        grey = file.mode in ("1", "L", "LA", "La") or file.mode.startswith("I") or layouts == ["LA;16B"]
        # A profile for inks or Lab says nothing about the RGB values made from them.
        keeps_profile = grey or file.mode in ("RGB", "RGBA", "RGBX", "P", "PA")
        icc = file.info.get("icc_profile") if keeps_profile else None
        notes = _notes(file, data)
        try:
            metadata = read_metadata(file, *colours.shape[:2])
        except Exception as error:  # Of damaged metadata, Pillow raises anything; the pixels are not lost for it.
            metadata, notes = NO_METADATA, (*notes, f"{error or type(error).__name__}; its metadata is left out")
    return LoadedImage(
        pixels=as_float(colours),
        alpha=None if alpha is None else as_float(alpha),
        bits=8 * colours.dtype.itemsize,
        grey=grey,
        icc=icc or None,
        metadata=metadata,
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


def write_image(
    path: str | os.PathLike[str], image: LoadedImage, rounding: Rounding = "round", quality: int = QUALITY
) -> None:
    """Writes an image with its bit depth, alpha, greyness, colour profile and metadata, atomically.

    The suffix says the format: .png, .jpg, .jpeg, .webp, .tif, .tiff or .avif. What a format does not keep is
    `image_encoding.lost_in`. A grey image is written from the luma (ITU-R BT.601 weights) of its pixels.

    Args:
        quality: 1 to 100, of JPEG, WebP and AVIF.

    Raises:
        ValueError: another suffix, shapes that do not fit, pixels that are not finite, or what the format cannot hold.
    """
    path = Path(path)
    kind = FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: no format for this suffix; give a name that ends in one of {', '.join(FORMATS)}")
    try:
        levels = levels_of(image, rounding, 16 if kind in DEEP else 8, alpha=kind != "jpg")
        content = encode(levels, kind, quality=quality, icc=image.icc, metadata=image.metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    write_atomically(path, content)


def levels_of(image: LoadedImage, rounding: Rounding = "round", most_bits: int = 16, alpha: bool = True) -> np.ndarray:
    """The image as whole numbers, (height, width, 1 to 4): grey or RGB, and alpha where it has one.

    Args:
        most_bits: images of more bits get so many.
        alpha: False leaves it out.

    Raises:
        ValueError: shapes that do not fit, or pixels that are not finite.
    """
    if image.pixels.ndim != 3 or image.pixels.shape[2] != 3 or 0 in image.pixels.shape:
        raise ValueError(f"pixels must be (height, width, 3), got {image.pixels.shape}")
    channels = image.pixels
    if image.grey:
        channels = channels @ np.array([[0.299], [0.587], [0.114]], np.float32)
    if alpha and image.alpha is not None:
        if image.alpha.shape != channels.shape[:2]:
            raise ValueError(f"alpha is {image.alpha.shape}, the pixels are {channels.shape[:2]}")
        channels = np.concatenate([channels, image.alpha[..., None]], -1)
    return quantise(channels, min(image.bits, most_bits), rounding)


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


def pad_to(image: np.ndarray, multiple: int = 64, min_size: int = 512) -> np.ndarray:
    """Extends (..., height, width, channels) at the bottom and right by reflection.

    Both sides become at least `min_size` and multiples of `multiple`. The edge pixel is not
    repeated; reflections go back and forth where the image is smaller than its padding,
    and a side of one pixel is repeated. `crop_to` undoes it.
    """

    height, width = (-(-max(side, min_size) // multiple) * multiple for side in image.shape[-3:-1])
    return pad_to_size(image, height, width)


def pad_to_size(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Extends (..., height, width, channels) at the bottom and right by reflection to a size; see `pad_to`."""
    missing = [(0, height - image.shape[-3]), (0, width - image.shape[-2]), (0, 0)]
    return np.pad(image, [(0, 0)] * (image.ndim - 3) + missing, mode="reflect")


def crop_to(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The top left part of (..., height, width, channels)."""
    return image[..., :height, :width, :]
