"""Pixels as the bytes of an image file: PNG, JPEG, WebP, TIFF and AVIF, with their metadata.

Pillow writes all of 8 bits; it cannot write colours of 16 bits, so those PNG files, and every TIFF, are put together
here.
"""

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from mperceiver_jax.image_metadata import (
    EXIF_IFD,
    GPS_IFD,
    IPTC_TAG,
    NO_METADATA,
    PNG_IPTC,
    XMP_TAG,
    Metadata,
    byte_order,
    entries,
)

Format = Literal["png", "jpg", "webp", "tiff", "avif"]
FORMATS: Mapping[str, Format] = {
    ".png": "png",
    ".jpg": "jpg",
    ".jpeg": "jpg",
    ".webp": "webp",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".avif": "avif",
}
"""The format that a suffix stands for."""
TITLES: Mapping[Format, str] = {"png": "PNG", "jpg": "JPEG", "webp": "WebP", "tiff": "TIFF", "avif": "AVIF"}
DEEP: tuple[Format, ...] = ("png", "tiff")
"""Formats that keep 16 bits."""
QUALITY = 95
# A segment of a JPEG ends after 64 kB less its length.
_SEGMENT = 65533
_BYTE, _ASCII, _SHORT, _LONG, _RATIONAL, _UNDEFINED = 1, 2, 3, 4, 5, 7
_CODES = {_BYTE: "B", _ASCII: "B", _SHORT: "H", _LONG: "I", _RATIONAL: "I", _UNDEFINED: "B"}
# Of the directory of EXIF data, a TIFF takes what describes the photograph.
_TAKEN = {270, 271, 272, 305, 306, 315, 316, 33432, EXIF_IFD, GPS_IFD}


def encode(
    levels: np.ndarray,
    kind: Format,
    *,
    quality: int = QUALITY,
    icc: bytes | None = None,
    metadata: Metadata = NO_METADATA,
) -> bytes:
    """An image file.

    Args:
        levels: uint8, or uint16 for PNG and TIFF, (height, width, channels): grey, grey and alpha, RGB, or RGB and
            alpha; JPEG takes no alpha.
        quality: 1 to 100, of JPEG, WebP and AVIF; a WebP of 100 is lossless.

    Raises:
        ValueError: what the format cannot hold, or a file that would be too large for it.
    """
    if kind == "png":
        return encode_png(levels, icc, metadata)
    if kind == "tiff":
        return encode_tiff([levels], icc, metadata)
    options = pillow_options(icc, metadata) | {"quality": quality}
    if kind == "jpg":
        options |= {"subsampling": 0 if quality >= 90 else 2, "dpi": metadata.dpi or (0, 0)}
        if metadata.iptc:
            options["extra"] = _app13(metadata.iptc)
    if kind == "webp":
        options |= {"lossless": quality == 100, "exact": True, "method": 4}
    stream = io.BytesIO()
    try:
        pillow_image(levels, grey=kind == "jpg").save(stream, TITLES[kind].upper(), **options)
    except (OSError, ValueError) as error:
        raise ValueError(f"{TITLES[kind]} cannot hold it: {error}") from error
    return stream.getvalue()


def pillow_options(icc: bytes | None, metadata: Metadata) -> dict[str, Any]:
    """Options of Pillow's `save` for JPEG, WebP and AVIF."""
    options: dict[str, Any] = {"icc_profile": icc}
    if metadata.exif:
        options["exif"] = b"Exif\0\0" + metadata.exif
    if metadata.xmp:
        options["xmp"] = metadata.xmp
    return options


def lost_in(kind: Format, bits: int, alpha: bool, metadata: Metadata) -> tuple[str, ...]:
    """What of an image a format does not keep, one sentence each."""
    title, lost = TITLES[kind], []
    if bits > 8 and kind not in DEEP:
        lost.append(f"{title} has 8 bits; its {bits} are rounded")
    if alpha and kind == "jpg":
        lost.append("JPEG has no transparency; it is left out")
    if metadata.iptc and kind in ("webp", "avif"):
        lost.append(f"{title} has no place for IPTC; it is left out")
    return tuple(lost)


def pillow_image(levels: np.ndarray, grey: bool = True) -> Image.Image:
    """uint8 levels as a Pillow image; `grey=False` makes RGB of grey levels."""
    mode = ("L", "LA", "RGB", "RGBA")[levels.shape[2] - 1]
    image = Image.fromarray(levels[..., 0] if mode == "L" else levels, mode)
    return image if grey or mode in ("RGB", "RGBA") else image.convert("RGB" if mode == "L" else "RGBA")


def encode_png(
    levels: np.ndarray,
    icc: bytes | None = None,
    metadata: Metadata = NO_METADATA,
) -> bytes:
    """uint8 or uint16 (height, width, 1 to 4 channels: grey, grey + alpha, RGB, RGBA) as a PNG file."""
    if levels.dtype == np.uint8:
        stream = io.BytesIO()
        pillow_image(levels).save(stream, "PNG")
        return with_chunks(stream.getvalue(), icc, metadata)
    height, width, channels = levels.shape
    colour_type = (0, 4, 2, 6)[channels - 1]
    header = struct.pack(">2I5B", width, height, 16, colour_type, 0, 0, 0)
    rows = levels.astype(">u2").view(np.uint8).reshape(height, -1)
    data = _chunk(b"IDAT", zlib.compress(_paeth(rows, 2 * channels).tobytes(), 6))
    file = b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + data + _chunk(b"IEND", b"")
    return with_chunks(file, icc, metadata)


def encode_tiff(
    pages: Sequence[np.ndarray],
    icc: bytes | None = None,
    metadata: Metadata = NO_METADATA,
) -> bytes:
    """A TIFF of pages as in `encode_png`, compressed by deflate. Metadata and profile belong to the first page.

    EXIF data is a TIFF structure itself: the file begins with it, so that its offsets stay right, and the
    directories of the pages follow.

    Raises:
        ValueError: more than 4 GB.
    """
    file = bytearray(metadata.exif or b"II*\0\0\0\0\0")
    order = byte_order(file)
    pointer = 4  # Where the offset of the next directory is written.
    (old,) = struct.unpack_from(order + "I", file, 4)
    kept = {tag: bytes(file[at : at + 12]) for tag, _, _, at in (entries(file, order, old) if old else ())}
    for number, levels in enumerate(pages):
        if levels.shape[2] == 2 and levels.dtype == np.uint16:
            levels = levels[..., [0, 0, 0, 1]]  # Pillow and others do not read grey and alpha of 16 bits.
        height, width, channels = levels.shape
        # Differences between neighbours along the rows, which compress better.
        steps = np.concatenate([levels[:, :1], np.diff(levels, axis=1)], axis=1)
        strip = zlib.compress(steps.astype(levels.dtype.newbyteorder(order)).tobytes(), 6)
        tags: dict[int, tuple[int, Sequence[int]]] = {
            256: (_LONG, [width]),
            257: (_LONG, [height]),
            258: (_SHORT, [8 * levels.dtype.itemsize] * channels),
            259: (_SHORT, [8]),
            262: (_SHORT, [1 if channels < 3 else 2]),
            273: (_LONG, [_append(file, strip)]),
            277: (_SHORT, [channels]),
            278: (_LONG, [height]),
            279: (_LONG, [len(strip)]),
            284: (_SHORT, [1]),
            317: (_SHORT, [2]),
        }
        if channels in (2, 4):
            tags[338] = (_SHORT, [2])
        if number == 0:
            tags |= _tiff_metadata(icc, metadata)
        directory = {tag: _entry(file, order, tag, *value) for tag, value in tags.items()}
        directory |= {tag: entry for tag, entry in kept.items() if number == 0 and tag in _TAKEN}
        at = _append(file, struct.pack(order + "H", len(directory)))
        file += b"".join(directory[tag] for tag in sorted(directory)) + bytes(4)
        struct.pack_into(order + "I", file, pointer, at)
        pointer = len(file) - 4
    return bytes(file)


def _tiff_metadata(icc: bytes | None, metadata: Metadata) -> dict[int, tuple[int, Sequence[int]]]:
    tags: dict[int, tuple[int, Sequence[int]]] = {}
    if metadata.dpi is not None:
        for tag, value in zip((282, 283), metadata.dpi, strict=True):
            tags[tag] = (_RATIONAL, [round(value * 1000), 1000])
        tags[296] = (_SHORT, [2])
    blocks = {34675: (_UNDEFINED, icc), XMP_TAG: (_BYTE, metadata.xmp), IPTC_TAG: (_UNDEFINED, metadata.iptc)}
    return tags | {tag: (kind, content) for tag, (kind, content) in blocks.items() if content}


def _entry(file: bytearray, order: str, tag: int, kind: int, values: Sequence[int]) -> bytes:
    """An entry of a directory; values of more than four bytes are appended to the file."""
    content = struct.pack(f"{order}{len(values)}{_CODES[kind]}", *values)
    count = len(values) // 2 if kind == _RATIONAL else len(values)
    where = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack(order + "I", _append(file, content))
    return struct.pack(order + "HHI", tag, kind, count) + where


def _append(file: bytearray, content: bytes) -> int:
    """Appends at an even offset, which is returned."""
    file += bytes(len(file) % 2)
    at = len(file)
    if at + len(content) >= 2**32:
        raise ValueError("TIFF cannot hold it: more than 4 GB")
    file += content
    return at


def _app13(iptc: bytes) -> bytes:
    """The segment of a JPEG that holds IPTC records."""
    block = struct.pack(">4sHHI", b"8BIM", 0x0404, 0, len(iptc)) + iptc + bytes(len(iptc) % 2)
    content = b"Photoshop 3.0\0" + block
    if len(content) > _SEGMENT:
        raise ValueError("its IPTC data is larger than 64 kB")
    return b"\xff\xed" + struct.pack(">H", len(content) + 2) + content


def with_chunks(png: bytes, icc: bytes | None, metadata: Metadata) -> bytes:
    """A PNG file with a profile and metadata, behind its signature and header of 8 and 25 bytes."""
    chunks = b"" if icc is None else _chunk(b"iCCP", b"ICC Profile\0\0" + zlib.compress(icc))
    if metadata.dpi is not None:
        chunks += _chunk(b"pHYs", struct.pack(">IIB", *(round(value / 0.0254) for value in metadata.dpi), 1))
    if metadata.exif:
        chunks += _chunk(b"eXIf", metadata.exif)
    if metadata.xmp:
        chunks += _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp)
    if metadata.iptc:
        text = f"\niptc\n{len(metadata.iptc):8d}\n{metadata.iptc.hex()}\n".encode()
        chunks += _chunk(b"zTXt", PNG_IPTC.encode() + b"\0\0" + zlib.compress(text))
    return png[:33] + chunks + png[33:]


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
