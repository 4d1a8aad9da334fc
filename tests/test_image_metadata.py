"""What files say besides their pixels is read, made true for an upright image, and written by every format."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, IptcImagePlugin

from mperceiver_jax.image_encoding import DEEP, FORMATS, encode, encode_tiff, lost_in
from mperceiver_jax.image_files import LoadedImage, levels_of, loaded, read_image, write_image
from mperceiver_jax.image_metadata import Metadata, settings_in, upright_exif, with_settings

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
)
UPRIGHT_XMP = XMP.replace(b'Orientation="6"', b'Orientation="1"')
IPTC = b"\x1c\x02\x78\x00\x07caption"  # Record 2, data set 120: the caption.
MAKER_NOTE = bytes(range(256))


def camera_exif(orientation: int = 6, size: tuple[int, int] = (12, 8)) -> bytes:
    """EXIF data as a camera writes it, with a preview in a second directory."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "A maker", "A model", orientation
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x927C: MAKER_NOTE, 0xA002: size[0], 0xA003: size[1]})
    exif.get_ifd(0x8825).update({1: "N", 2: (52.0, 31.0, 12.0)})
    data = bytearray(exif.tobytes().removeprefix(b"Exif\0\0"))
    order = "<" if data[:2] == b"II" else ">"
    (first,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, first)
    struct.pack_into(order + "I", data, first + 2 + 12 * count, len(data))
    return bytes(data) + struct.pack(order + "HHHIII", 1, 0x0201, 4, 1, 0, 0)


def described(file: bytes) -> dict:
    """The metadata of a file as Pillow reports it."""
    image = Image.open(io.BytesIO(file))
    exif = image.getexif()
    details = exif.get_ifd(0x8769)
    return {
        "maker": exif.get(0x010F),
        "orientation": exif.get(0x0112, 1),
        "note": details.get(0x927C),
        "size": (details.get(0xA002), details.get(0xA003)),
        "north": exif.get_ifd(0x8825).get(1),
        "dpi": tuple(round(float(one)) for one in image.info.get("dpi", ())),
        "icc": image.info.get("icc_profile"),
    }


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_keeps_what_the_file_says(tmp_path, suffix):
    """A photograph taken on its side: 12 x 8 in the file, 8 x 12 upright."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)
    app13 = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(IPTC)) + IPTC
    extra = b"\xff\xed" + struct.pack(">H", len(app13) + 2) + app13
    Image.fromarray(colours).save(
        tmp_path / "a.jpg", exif=b"Exif\0\0" + camera_exif(), xmp=XMP, dpi=(300, 300), icc_profile=PROFILE, extra=extra
    )
    image = read_image(tmp_path / "a.jpg")
    assert image.pixels.shape == (12, 8, 3) and image.metadata.iptc == IPTC and not image.notes
    write_image(tmp_path / f"b{suffix}", image)
    file = (tmp_path / f"b{suffix}").read_bytes()
    said = described(file)
    assert (said["maker"], said["note"], said["north"]) == ("A maker", MAKER_NOTE, "N")
    assert (said["orientation"], said["size"], said["icc"]) == (1, (8, 12), PROFILE)
    if suffix not in (".webp", ".avif"):  # They have no place for these two.
        assert said["dpi"] == (300, 300)
    again = loaded(file)
    assert again.pixels.shape == (12, 8, 3)
    assert again.metadata.xmp == UPRIGHT_XMP
    if suffix not in (".webp", ".avif"):
        assert again.metadata.iptc == IPTC
    if suffix in (".jpg", ".jpeg", ".tif", ".tiff"):
        with Image.open(tmp_path / f"b{suffix}") as opened:
            assert IptcImagePlugin.getiptcinfo(opened)[2, 120] == b"caption"


def test_a_tiff_keeps_its_metadata_at_16_bits(tmp_path):
    image = LoadedImage(
        np.random.default_rng(1).random((5, 7, 3), np.float32),
        alpha=np.linspace(0, 1, 35, dtype=np.float32).reshape(5, 7),
        bits=16,
        icc=PROFILE,
        metadata=Metadata(upright_exif(camera_exif(), 5, 7), UPRIGHT_XMP, IPTC, (72.0, 96.0)),
    )
    for kind in DEEP:
        write_image(tmp_path / f"a.{kind}", image)
        again = read_image(tmp_path / f"a.{kind}")
        np.testing.assert_array_equal(levels_of(again), levels_of(image))
        assert (again.bits, again.icc, described((tmp_path / f"a.{kind}").read_bytes())["note"]) == (
            16,
            PROFILE,
            MAKER_NOTE,
        )
    assert again.metadata.iptc == IPTC and again.metadata.dpi == pytest.approx((72.0, 96.0))


@settings(max_examples=60, deadline=None)
@given(
    suffix=st.sampled_from([".png", ".tif"]),
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bits=st.sampled_from([8, 16]),
    grey=st.booleans(),
    alpha=st.booleans(),
    orientation=st.integers(1, 8),
    dpi=st.none() | st.tuples(st.integers(2, 5000), st.integers(2, 5000)),
    order=st.sampled_from(["II", "MM"]),
)
def test_lossless_formats_give_back_every_kind_of_image(suffix, size, bits, grey, alpha, orientation, dpi, order):
    channels = (1 if grey else 3) + alpha
    levels = np.random.default_rng(0).integers(0, 2**bits, (*size, channels)).astype(f"u{bits // 8}")
    exif = camera_exif(orientation)
    if order == "MM":
        turned = Image.Exif()
        turned.load(b"Exif\0\0" + exif)
        turned.endian = ">"
        exif = turned.tobytes().removeprefix(b"Exif\0\0")
    metadata = Metadata(upright_exif(exif, *size), UPRIGHT_XMP, b"", dpi and (float(dpi[0]), float(dpi[1])))
    again = loaded(encode(levels, FORMATS[suffix], icc=PROFILE, metadata=metadata))
    if suffix == ".tif" and (bits, channels) == (16, 2):
        levels, grey = levels[..., [0, 0, 0, 1]], False  # Few programs read grey and alpha of 16 bits in a TIFF.
    np.testing.assert_array_equal(levels_of(again), levels)
    assert (again.bits, again.grey, again.icc, again.metadata.xmp) == (bits, grey, PROFILE, UPRIGHT_XMP)
    assert (again.alpha is not None) == alpha
    # PNG counts pixels per metre.
    assert again.metadata.dpi is None if dpi is None else again.metadata.dpi == pytest.approx(dpi, abs=0.02)
    assert upright_exif(again.metadata.exif, *size)


def test_pages_of_a_tiff_are_images_of_their_own():
    pages = [np.full((2, 3, 3), 7, np.uint8), np.full((4, 2, 1), 60000, np.uint16), np.full((1, 1, 4), 9, np.uint8)]
    with Image.open(io.BytesIO(encode_tiff(pages))) as file:
        assert file.n_frames == 3
        sizes = []
        for index in range(3):
            file.seek(index)
            sizes.append(file.size)
    assert sizes == [(3, 2), (2, 4), (1, 1)]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_exif_data_is_said_and_nothing_else_raised(data):
    exif = bytearray(camera_exif())
    for _ in range(data.draw(st.integers(1, 8))):
        exif[data.draw(st.integers(0, len(exif) - 1))] = data.draw(st.integers(0, 255))
    del exif[data.draw(st.integers(0, len(exif))) :]
    try:
        upright_exif(bytes(exif), 8, 12)
    except ValueError as error:
        assert "EXIF data is damaged" in str(error)


def test_damaged_metadata_costs_no_pixels(tmp_path):
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\0\0")
    image = read_image(tmp_path / "a.jpg")
    assert image.pixels.shape == (4, 4, 3) and image.metadata == Metadata()
    assert any("EXIF data is damaged" in note and "left out" in note for note in image.notes)


def test_how_an_image_was_restored_stands_in_its_xmp_once():
    text = '--strength=0.5 --only=derain --mask="a <b> & c.png"'
    once = with_settings(b"", text)
    assert settings_in(once) == text
    again = with_settings(with_settings(XMP, "earlier"), text)
    assert settings_in(again) == text and again.count(b"mperceiver_jax:settings") == 1
    assert b"tiff:Orientation" in again
    assert settings_in(XMP) == "" and with_settings(b"no packet", text) == b"no packet"


def test_what_a_format_does_not_hold_is_said():
    assert lost_in("jpg", 16, True, Metadata(iptc=b"x")) == (
        "JPEG has 8 bits; its 16 are rounded",
        "JPEG has no transparency; it is left out",
    )
    assert lost_in("webp", 8, True, Metadata(iptc=b"x")) == ("WebP has no place for IPTC; it is left out",)
    assert not lost_in("tiff", 16, True, Metadata(iptc=b"x"))
