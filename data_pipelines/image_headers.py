"""Facts about an image file that Pillow does not report, or reports without their meaning, read from its header."""

from __future__ import annotations

import io
import math
import re
import struct
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from data_pipelines.files import placeholder_reason

ORIENTATION = 0x0112
BITS, PHOTOMETRIC, SUBFILE, SAMPLE_FORMAT = 258, 262, 254, 339
WHITE_IS_ZERO = 0
_NUMERIC = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_SRGB_GAMMA = 1 / 2.2
_SRGB_POINTS = (0.3127, 0.3290, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(height, width) with the EXIF orientation applied, of an image that need not be decoded."""
    # Pillow reports a TIFF upright already.
    turned = image.format != "TIFF" and image.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def check_samples(tags: Any) -> None:
    """Raises ValueError for a TIFF whose samples have no fixed range, whatever their values are."""
    formats, bits = set(tags.get(SAMPLE_FORMAT, (1,))), max(tags.get(BITS, (1,)))
    if numeric := sorted(_NUMERIC[one] for one in formats if one in _NUMERIC):
        raise ValueError(f"{numeric[0]} samples have no fixed range; convert it to 8 or 16 bits without sign")
    if bits > 16:
        raise ValueError(f"samples of {bits} bits have no fixed range; convert it to 8 or 16 bits")


def grey_levels(samples: np.ndarray, image: Image.Image) -> np.ndarray:
    """Grey samples of more than 8 bits as uint16 in which 0 is black and 65535 white, by the tags of a TIFF."""
    if image.format != "TIFF":
        return samples.astype(np.uint16)
    tags = image.tag_v2  # type: ignore[attr-defined]
    most = 2 ** max(tags.get(BITS, (16,))) - 1
    levels = samples if most == 65535 else np.rint(samples * np.float64(65535 / most))
    levels = levels.astype(np.uint16)
    return 65535 - levels if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else levels


def extra_images(image: Image.Image) -> int:
    """The number of further images in the file that are no reduced version, preview or mask of the first."""
    frames = getattr(image, "n_frames", 1)
    # MPO is what phones and stereo cameras write: a JPEG followed by a preview or a second view.
    if frames == 1 or image.format == "MPO":
        return 0
    if image.format != "TIFF":
        return frames - 1
    count = 0
    for frame in range(1, frames):
        image.seek(frame)
        count += not image.tag_v2.get(SUBFILE, 0) & 0b101  # type: ignore[attr-defined]
    image.seek(0)
    return count


def colour_netpbm(data: bytes) -> np.ndarray | None:
    """The pixels of a binary PPM of 16 bits, uint16 (height, width, 3); None for any other file.

    Raises:
      ValueError: it is cut short.
    """
    space = rb"(?:\s|#[^\n]*\n)+"
    found = re.match(rb"P6" + space + rb"(\d{1,9})" + space + rb"(\d{1,9})" + space + rb"(\d{1,5})\s", data)
    if found is None or (most := int(found[3])) < 256:
        return None
    width, height = int(found[1]), int(found[2])
    body = data[found.end() : found.end() + 6 * width * height]
    if not width or not height or len(body) < 6 * width * height:
        raise ValueError("the file is cut short")
    samples = np.frombuffer(body, ">u2").reshape(height, width, 3)
    return np.rint(np.minimum(samples, most) * np.float64(65535 / most)).astype(np.uint16)


def depth_in_file(data: bytes, kind: str | None) -> int:
    """Bits of a colour sample in a file of a format that Pillow reads with 8 bits only; 8 for the others."""
    if kind == "JPEG2000" and (found := re.search(rb"\xff\x4f\xff\x51.{38}(.)", data, re.DOTALL)):
        return (found[1][0] & 0x7F) + 1
    if kind == "AVIF" and (found := re.search(rb"pixi.{4}[\x01-\x04](.)", data, re.DOTALL)):
        return found[1][0]
    if kind == "SGI" and len(data) > 3:
        return 8 * data[3]
    return 8


def colour_description(image: Image.Image, data: bytes) -> str:
    """A colour space that the file states otherwise than by an ICC profile, if it is not sRGB; else empty."""
    if image.info.get("icc_profile"):
        return ""
    if image.format == "PNG":
        return _png_colours(image, data)
    exif = image.getexif()
    interoperability = exif.get_ifd(0xA005).get(1) if 0xA005 in exif.get_ifd(0x8769) else None
    return "Adobe RGB (by its EXIF data)" if interoperability == "R03" else ""


def reason_unknown(data: bytes) -> str:
    """Why Pillow identifies no image in these bytes."""
    if reason := placeholder_reason(data):
        return reason
    if data[:4] in (b"II*\0", b"MM\0*"):
        try:
            check_samples(_tiff_tags(data))
        except ValueError as error:
            return str(error)
        except Exception:  # The directory itself is damaged.
            return "its TIFF directory is damaged"
        return "it is a TIFF of a kind that Pillow does not read"
    if data.startswith(b"%!PS"):
        return "it is PostScript, a program that would have to be run; convert it to PNG"
    return "it is in no format that Pillow knows"


def _tiff_tags(data: bytes) -> Any:
    directory = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    stream = io.BytesIO(data)
    stream.seek(directory.next)
    directory.load(stream)
    return directory


def _png_colours(image: Image.Image, data: bytes) -> str:
    position = 8
    while position + 12 <= len(data):
        (length,), kind = struct.unpack(">I", data[position : position + 4]), data[position + 4 : position + 8]
        if kind == b"IDAT":
            break
        if kind == b"cICP" and (codes := tuple(data[position + 8 : position + 12])) != (1, 13, 0, 1):
            transfer = {16: "PQ", 18: "HLG"}.get(codes[1], f"transfer function {codes[1]}")
            return f"colour primaries {codes[0]} with {transfer} (by its cICP chunk)"
        position += 12 + length
    if "srgb" in image.info:
        return ""
    gamma, points = image.info.get("gamma"), image.info.get("chromaticity")
    parts = []
    if gamma is not None and not math.isclose(gamma, _SRGB_GAMMA, rel_tol=0.02):
        parts.append(f"gamma {gamma:.3g}")
    if points is not None and any(abs(a - b) > 0.01 for a, b in zip(points, _SRGB_POINTS, strict=True)):
        parts.append("primaries other than sRGB's")
    return f"{' and '.join(parts)} (by its gAMA and cHRM chunks)" if parts else ""
