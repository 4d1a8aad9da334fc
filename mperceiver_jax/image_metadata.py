"""What an image file says besides its pixels: EXIF, XMP, IPTC and resolution, made true for an upright image."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal
from xml.sax.saxutils import quoteattr, unescape

from PIL import Image

ORIENTATION = 0x0112
EXIF_IFD, GPS_IFD = 0x8769, 0x8825
IPTC_TAG, XMP_TAG = 33723, 700
PNG_IPTC = "Raw profile type iptc"
"""Key of the text chunk that holds IPTC records in a PNG, which has no place of its own for them."""
_IPTC_RESOURCE = 0x0404
_SHORT, _LONG = 3, 4
# Tags of a TIFF that describe the photograph; all others describe how its samples are stored.
_DESCRIPTIVE = (270, 271, 272, 305, 306, 315, 316, 33432)
_WIDTHS, _HEIGHTS = (0x0100, 0xA002), (0x0101, 0xA003)
_QUOTES = {'"': "&quot;"}
_NAMESPACE = "urn:mperceiver-jax:restoration:1.0"
_EMPTY_XMP = (
    b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
)


@dataclass(frozen=True)
class Metadata:
    """Metadata of an image that is upright.

    Attributes:
        exif: a TIFF structure (what follows `Exif\\0\\0` in a JPEG), without a preview; empty where there is none.
        xmp: an XMP packet; empty where there is none.
        iptc: IPTC-IIM records; empty where there are none.
        dpi: pixels per inch, horizontally and vertically, or None.
    """

    exif: bytes = b""
    xmp: bytes = b""
    iptc: bytes = b""
    dpi: tuple[float, float] | None = None


NO_METADATA = Metadata()


def read_metadata(file: Image.Image, height: int, width: int) -> Metadata:
    """The metadata of an opened image file.

    Args:
        height, width: of the upright image.

    Raises:
        ValueError: the EXIF data is damaged.
    """
    exif = _exif_of_tiff(file) if file.format == "TIFF" else bytes(file.info.get("exif") or b"")
    xmp = file.info.get("xmp") or file.info.get("XML:com.adobe.xmp") or b""
    if file.format == "TIFF":
        xmp = file.tag_v2.get(XMP_TAG, b"")  # type: ignore[attr-defined]
    dpi = file.info.get("dpi")
    # Pillow reports 1 dpi for a JPEG that states a ratio of sides only.
    stated = dpi is not None and all(1 < float(value) < 1e5 for value in dpi)
    return Metadata(
        upright_exif(exif.removeprefix(b"Exif\0\0"), height, width),
        re.sub(rb"(tiff:Orientation(?:>|=[\"']))\d", rb"\g<1>1", xmp.encode() if isinstance(xmp, str) else bytes(xmp)),
        _iptc(file),
        (float(dpi[0]), float(dpi[1])) if stated and dpi is not None else None,
    )


def upright_exif(exif: bytes, height: int, width: int) -> bytes:
    """EXIF data with orientation 1, the size of the upright image and no preview; all else stays byte for byte.

    Values are changed in place, so that offsets within a camera's own notes stay right.

    Raises:
        ValueError: it is damaged.
    """
    if not exif:
        return b""
    out = bytearray(exif)
    try:
        order = byte_order(exif)
        (first,) = struct.unpack_from(order + "I", out, 4)
        directories, end = [first], first
        for tag, _, _, at in entries(out, order, first):
            end = at + 12
            if tag == EXIF_IFD:
                directories += struct.unpack_from(order + "I", out, at + 8)
        # What follows the first directory is the preview, which shows the degraded image.
        struct.pack_into(order + "I", out, max(end, first + 2), 0)
        for directory in directories:
            for tag, kind, _, at in entries(out, order, directory):
                value = 1 if tag == ORIENTATION else width if tag in _WIDTHS else height if tag in _HEIGHTS else None
                if value is not None and kind in (_SHORT, _LONG):
                    struct.pack_into(order + ("H" if kind == _SHORT else "I"), out, at + 8, value)
    except struct.error as error:
        raise ValueError(f"its EXIF data is damaged ({error})") from error
    return bytes(out)


def byte_order(tiff: bytes | bytearray) -> Literal["<", ">"]:
    """`<` or `>`. Raises ValueError where this is no TIFF structure."""
    if tiff[:4] not in (b"II*\0", b"MM\0*"):
        raise ValueError("its EXIF data is damaged (it has no byte order)")
    return "<" if tiff[:2] == b"II" else ">"


def entries(tiff: bytes | bytearray, order: str, directory: int) -> Iterator[tuple[int, int, int, int]]:
    """(tag, type, count, offset of the entry of 12 bytes) for each entry of a directory. Raises struct.error."""
    (count,) = struct.unpack_from(order + "H", tiff, directory)
    for index in range(count):
        at = directory + 2 + 12 * index
        yield (*struct.unpack_from(order + "HHI", tiff, at), at)


def with_settings(xmp: bytes, settings: str) -> bytes:
    """An XMP packet that also says how the image was restored, in place of what an earlier restoration said.

    A packet that is not in UTF-8 RDF is returned unchanged.
    """
    packet = re.sub(rb'<rdf:Description[^>]*xmlns:mperceiver_jax="[^"]*"[^>]*/>', b"", xmp or _EMPTY_XMP)
    end = packet.rfind(b"</rdf:RDF>")
    if end < 0:
        return xmp
    description = (
        f'<rdf:Description rdf:about="" xmlns:mperceiver_jax="{_NAMESPACE}" '
        f"mperceiver_jax:settings={quoteattr(settings, _QUOTES)}/>"
    )
    return packet[:end] + description.encode() + packet[end:]


def settings_in(xmp: bytes) -> str:
    """What `with_settings` wrote; empty where it wrote nothing."""
    found = re.search(rb'mperceiver_jax:settings="([^"]*)"', xmp)
    return unescape(found[1].decode(), {"&quot;": '"'}) if found else ""


def _exif_of_tiff(file: Image.Image) -> bytes:
    """The descriptive tags of a TIFF, with its EXIF and GPS directories, as EXIF data."""
    stated, kept = file.getexif(), Image.Exif()
    for tag in _DESCRIPTIVE:
        if tag in stated:
            kept[tag] = stated[tag]
    for directory in (EXIF_IFD, GPS_IFD):
        if found := stated.get_ifd(directory):
            kept.get_ifd(directory).update(found)
    filled = bool(kept) or any(kept.get_ifd(directory) for directory in (EXIF_IFD, GPS_IFD))
    return kept.tobytes() if filled else b""


def _iptc(file: Image.Image) -> bytes:
    if file.format == "TIFF":
        found = file.tag_v2.get(IPTC_TAG, b"")  # type: ignore[attr-defined]
        if isinstance(found, tuple):  # Stated as whole numbers of 32 bits, as Adobe does.
            found = struct.pack(f"{file.tag_v2._endian}{len(found)}I", *found)  # type: ignore[attr-defined]
        return bytes(found)
    resources = file.info.get("photoshop")
    if isinstance(resources, dict):
        return bytes(resources.get(_IPTC_RESOURCE, b""))
    # In a PNG: the name, the length, and the records as hexadecimal digits.
    text = str(file.info.get(PNG_IPTC, ""))
    return bytes.fromhex("".join(text.split()[2:])) if text else b""
